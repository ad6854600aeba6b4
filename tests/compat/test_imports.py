"""How ``import ray`` finds skate, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import skate
import skate.compat.ray as ray
from skate.compat.ray import __main__ as runner


def run(code: str, *arguments: str, cwd: Path | None = None) -> str:
    done = subprocess.run(
        [sys.executable, *arguments, *(["-c", code] if code else [])],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=cwd,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ["data", "train", "tune", "serve", "rllib"])
def test_a_library_of_rays_is_refused_with_advice(name: str) -> None:
    with pytest.raises(AttributeError, match="engine='ray'"):
        getattr(ray, name)
    code = f"""
import skate.compat.ray.as_ray
for statement in ("import ray.{name}", "from ray import {name}", "import ray.{name}.x"):
    try:
        exec(statement)
    except ImportError as error:
        print("engine='ray'" in str(error))
"""
    assert run(code) == "True\n" * 3


def test_ray_is_skate_in_this_process_and_in_workers() -> None:
    code = """
import skate.compat.ray.as_ray
import ray, ray.util.queue, ray.util.multiprocessing.pool
from ray.exceptions import RayError
import skate.util.queue, skate.compat.ray
print(ray is skate.compat.ray, ray.util.queue.Queue is skate.util.queue.Queue)
print(ray.util.queue.__spec__.name, ray.__name__)
try:
    import ray.no_such_module
except ModuleNotFoundError as error:
    print(error.name)

@ray.remote
def inside():
    import ray
    from ray.util.multiprocessing import Pool
    return ray.__name__, Pool.__module__

print(ray.get(inside.remote()))
"""
    assert run(code).splitlines() == [
        "True True",
        "skate.compat.ray.util.queue skate.compat.ray",
        "ray.no_such_module",
        "('skate.compat.ray', 'skate.util.multiprocessing')",
    ]


def test_the_real_ray_is_not_replaced_in_mid_program(tmp_path: Path) -> None:
    (tmp_path / "ray.py").write_text("")
    code = """
import ray
try:
    import skate.compat.ray.as_ray
except ImportError as error:
    print(error)
"""
    assert "import that first" in run(code, cwd=tmp_path)


def test_a_module_may_be_run(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        "import sys, ray\nprint(__name__, sys.argv[1:], ray.__name__)"
    )
    out = run("", "-m", "skate.compat.ray", "-m", "program", "-x", "1", cwd=tmp_path)
    assert out == "__main__ ['-x', '1'] skate.compat.ray\n"


def test_a_script_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        runner.main([])
    assert "script" in capsys.readouterr().err


def test_init_accepts_what_has_no_effect_and_refuses_what_would(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(ValueError, match="engine='ray'"):
        ray.init(address="auto")
    with pytest.raises(ValueError, match="inline"):
        ray.init(local_mode=True)
    with pytest.raises(RuntimeError, match="no_such_argument"):
        ray.init(no_such_argument=1)
    assert not ray.is_initialized()
    with ray.init(
        "local", num_cpus=1, include_dashboard=False, _temp_dir="/tmp/x"
    ) as context:
        assert context["node_id"] == skate.nodes()[0]["NodeID"]
        assert context.get("address") == "local"
        assert dict(context) == context.address_info
        assert len(context) == len(list(context.keys()))
        assert ray.get_gpu_ids() == []
        with pytest.raises(RuntimeError, match="runs already"):
            ray.init()
        ray.init(ignore_reinit_error=True)
    assert not ray.is_initialized()
