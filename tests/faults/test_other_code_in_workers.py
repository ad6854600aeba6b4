"""Workers import modules themselves, and may find other code than the driver has."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from pathlib import Path

import cloudpickle
import numpy
import pytest

pytest.importorskip("skate._core", reason="faults need the embedded engine's core")

import skate

MODULE = """
import os
import shutil

if os.getpid() == {driver}:

    def numbers():
        yield 1

    def loop():
        yield 1

else:

    def numbers():
        return [1]

    async def loop():
        yield 1
"""


@pytest.mark.parametrize(
    ("name", "found"), [("numbers", "list"), ("loop", "async_generator")]
)
def test_a_stream_whose_function_is_no_generator_in_the_worker_says_so(
    name: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = MODULE.format(driver=os.getpid())
    (tmp_path / "other_in_workers.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "other_in_workers", raising=False)
    function = getattr(importlib.import_module("other_in_workers"), name)
    with skate.init("embedded", num_cpus=1):
        stream = skate.remote(max_retries=0)(function).remote()
        with pytest.raises(
            TypeError, match=f"must be a generator; it returned {found}"
        ):
            skate.get(next(stream), timeout=60)


@skate.remote
def draw() -> float:
    return float(numpy.random.random())  # noqa: NPY002  # it is the subject


def test_workers_have_random_numbers_of_their_own_whatever_makes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other_generator.py").write_text(
        "import numpy as np\nnp.random.set_bit_generator(np.random.PCG64DXSM(7))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("SKATE_PRELOAD", "other_generator")
    with skate.init("embedded", num_cpus=1):
        draws = [draw.options(max_calls=1).remote() for _ in range(3)]
        assert len(set(skate.get(draws, timeout=60))) == 3


def test_workers_have_the_cloudpickle_of_the_sessions_environment(
    tmp_path: Path,
) -> None:
    place = Path(cloudpickle.__file__).parent
    shutil.copytree(place, tmp_path / "cloudpickle")

    @skate.remote
    def where() -> str:
        import cloudpickle

        return str(Path(cloudpickle.__file__).parent.parent)

    env = {"env_vars": {"PYTHONPATH": str(tmp_path)}}
    with skate.init("embedded", num_cpus=1, runtime_env=env):
        assert skate.get(where.remote()) == str(tmp_path)
