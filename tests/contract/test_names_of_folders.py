"""A user's code may lie anywhere, also in folders that are called as skate's own."""

from __future__ import annotations

import runpy
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import Signal
from polling import wait_until

import skate
from skate.exceptions import PerformanceAdvice

FOLDER = str(Path(skate.__file__).parent)

JOB = '''
"""A user's program."""

import skate


def outer(error):
    inner(error)


def inner(error):
    raise error


@skate.remote
def fails(error):
    outer(error)


@skate.remote
def waits(gate):
    skate.get(gate.wait.remote())


@skate.remote
def quick():
    return 1


def one_by_one():
    for _ in range(1000):
        skate.get(quick.remote())
'''


@pytest.fixture(
    params=[
        "skate/job.py",
        "src/skate/engine/embedded/job.py",
        "skate/_runtime.py",
        "lib/python3.11/job.py",
        "skät/日本/job.py",
    ]
)
def job(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, dict[str, Any]]:
    """The program's place, and what it defines."""
    file = tmp_path / request.param
    file.parent.mkdir(parents=True)
    file.write_text(JOB)
    return str(file), runpy.run_path(str(file))


Job = tuple[str, dict[str, Any]]


@pytest.mark.core
@pytest.mark.usefixtures("engine")
def test_an_error_shows_the_users_frames_and_no_others(job: Job) -> None:
    file, names = job
    with pytest.raises(KeyError) as caught:
        skate.get(names["fails"].remote(KeyError("k")))
    text = "".join(traceback.format_exception(caught.value.__cause__))
    for name in ("fails", "outer", "inner"):
        assert text.count(f", in {name}\n") == 1
    assert text.count(file) == 3
    assert FOLDER not in text


@pytest.mark.usefixtures("engine")
@pytest.mark.differs(ray="Ray does not tell the line that runs")
def test_why_shows_the_users_frames_and_no_others(job: Job) -> None:
    file, names = job
    gate = Signal.remote()
    ref = names["waits"].remote(gate)
    skate.get(gate.wait_for_waiting.remote(1))
    assert wait_until(lambda: "Signal.wait" in skate.why(ref)), skate.why(ref)
    text = skate.why(ref)
    shown = file.encode("ascii", "backslashreplace").decode()
    assert f'File "{file}", line ' in text or f'File "{shown}", line ' in text, text
    assert " in waits" in text
    assert FOLDER not in text
    assert "threading.py" not in text
    skate.get(gate.set.remote())
    skate.get(ref)


@pytest.mark.differs(inline="it is not about speed", ray="Ray gives advice of its own")
def test_advice_names_the_users_line(
    start: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    job: Job,
) -> None:
    monkeypatch.setenv("SKATE_ADVICE", "1")
    start(num_cpus=2)
    file, names = job
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        names["one_by_one"]()
    (advice,) = (w for w in caught if w.category is PerformanceAdvice)
    assert advice.filename == file
    line = JOB.splitlines()[advice.lineno - 1]
    assert line.strip() == "skate.get(quick.remote())"
