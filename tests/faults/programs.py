"""Programs in a process of their own: where the session, or all of it, may end."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import textwrap


def run(
    program: str,
    *arguments: str,
    descriptors: int = 0,
    seconds: float = 100,
    **env: str,
) -> str:
    """What a program prints; it must end well. ``descriptors``: its limit, if any."""

    def limit() -> None:
        if descriptors:
            resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))

    done = subprocess.run(
        [
            sys.executable,
            "-X",
            "faulthandler",
            "-c",
            textwrap.dedent(program),
            *arguments,
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **env},
        preexec_fn=limit,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, (done.returncode, done.stderr[-3000:])
    return done.stdout
