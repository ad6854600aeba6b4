from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

for module in ("typer", "uvicorn", "starlette", "orjson", "prometheus_client"):
    pytest.importorskip(module)

MODELS = """
class Scale:
    def __init__(self, factor):
        self.factor = float(factor)

    def evaluate(self, states):
        return states * self.factor
"""


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "skate", "serve", *arguments]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_class_is_served_until_it_is_told_to_end(
    tmp_path: Path, number: signal.Signals
) -> None:
    (tmp_path / "models.py").write_text(MODELS)
    with subprocess.Popen(
        command("models:Scale", "3", "--port", "0", "--name", "scale"),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as served:
        try:
            assert served.stdout is not None
            url = served.stdout.readline().split()[2]
            served.stdout.readline()
            token = served.stdout.readline().split()[1]
            states = {"name": "x", "datatype": "FP64", "shape": [2], "data": [1, 2]}
            request = urllib.request.Request(
                url,
                json.dumps({"inputs": [states]}).encode(),
                {"Authorization": f"Bearer {token}"},
            )
            with urllib.request.urlopen(request, timeout=60) as answer:
                assert json.load(answer)["outputs"][0]["data"] == [3, 6]
            served.send_signal(number)
            _, err = served.communicate(timeout=60)
        finally:
            served.kill()
    assert err == ""
    assert served.returncode == 130


def test_what_is_no_model_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    (tmp_path / "models.py").write_text(MODELS)
    for wrong, says in [
        ("models", "expected MODULE:CLASS"),
        ("models:Scala", "Did you mean Scale?"),
        ("modles:Scale", "No module named 'modles'"),
    ]:
        done = subprocess.run(
            command(wrong), cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert says in done.stderr
