"""What do a task, an actor call, an object and a start cost, here and elsewhere?

Run it with ``make bench``, or ``python -m benchmarks.engine --help``.
"""

from __future__ import annotations

import sys

from .harness import Case, Goal, Question, main
from .peers.task_api import MB

RAY, FLOOR = "ray_peer", "floors"


def times_ray(times: int) -> Goal:
    """At least ``times`` as good as Ray."""
    return Goal(f">= {times}x Ray", against=RAY, at_least=times)


QUESTION = Question(
    name="engine",
    text="What do a task, an actor call, an object and a start cost?",
    cases=(
        Case("single client tasks sync", "calls/s", goals=(times_ray(100),)),
        Case("single client tasks async", "calls/s"),
        Case("tasks, burst of 10k", "calls/s", goals=(times_ray(100),)),
        Case("1:1 actor calls sync", "calls/s", goals=(times_ray(50),)),
        Case("1:1 actor calls async", "calls/s", goals=(times_ray(50),)),
        Case("1:1 async-actor calls sync", "calls/s"),
        Case("1:1 async-actor calls async", "calls/s"),
        Case("single client wait 1k refs", "calls/s"),
        Case("wait for one of 10k refs", "us"),
        Case("wait for one of 10k values, same list", "us", goals=(times_ray(1000),)),
        Case("as completed, 10k tasks", "calls/s"),
        Case("tree of tasks, 3 deep, fan-out 4", "ms"),
        Case("tasks of a task, 1k", "calls/s", goals=(times_ray(100),)),
        Case("single client get calls (Plasma Store)", "calls/s"),
        Case("single client put calls (Plasma Store)", "calls/s"),
        Case(
            "put 100 MB",
            "GB/s",
            nbytes=100 * MB,
            goals=(
                times_ray(8),
                Goal(
                    ">= 0.5 of warm memcpy",
                    against=FLOOR,
                    case="warm memcpy of 100 MB",
                    at_least=0.5,
                ),
            ),
        ),
        Case("get 100 MB", "us", goals=(Goal("< 100 us", at_most=100e-6),)),
        Case("task returning 8 MB", "calls/s", goals=(times_ray(5),)),
        Case("single client get object containing 10k refs", "calls/s"),
        Case("init to first result", "ms", goals=(Goal("< 300 ms", at_most=0.3),)),
        Case("actor start from warm", "ms", goals=(Goal("< 10 ms", at_most=0.01),)),
        Case(
            "memory with 256 idle actors",
            "MB",
            goals=(Goal("< 1500 MB", at_most=1.5e9),),
        ),
        Case(
            "memory with 2 idle workers", "MB", goals=(Goal("< 150 MB", at_most=150e6),)
        ),
        Case(
            "busy workers, two a core: time beside a pool's, in pairs",
            "%",
            goals=(Goal("0.97 of a process pool", at_most=1 / 0.97),),
        ),
        Case("idle CPU", "%", goals=(Goal("< 0.1 % of a core", at_most=0.001),)),
        Case("spinning ping-pong", "us"),
        Case("warm memcpy of 100 MB", "GB/s", nbytes=100 * MB),
    ),
    peers=("skate_peer", FLOOR, RAY, "process_pool", "executor", "joblib_peer"),
    groups=("start", "calls", "objects", "busy"),
)


if __name__ == "__main__":
    sys.exit(main(QUESTION))
