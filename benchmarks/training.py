"""How much of two processes that do not communicate does data-parallel SGD reach?

The first experiment of the Ray paper (OSDI 2018, section 5.2.1) on one machine:
ResNet-101, synthetic images, momentum SGD, two workers of one thread each. ``comm``:
batches of 2 at 3x64x64, where 178 MB of gradients an iteration decide. ``heavy``:
batches of 8 at 3x224x224, where they hardly count. The picture has what was measured,
and beside it what a model makes of that for 1 to 64 workers.
"""

from __future__ import annotations

import sys

from benchmarks.harness import Case, Goal, Question, main
from benchmarks.training_picture import draw

_BOUND, _DDP, _RAY = "training_bound", "training_ddp", "training_ray"


def _goals(way: str, share: float) -> tuple[Goal, ...]:
    goals = [Goal(f"{share} of the bound", _BOUND, "comm", share)]
    if way == "allreduce":
        goals += [
            Goal("1.35 x DDP", _DDP, "comm", 1.35),
            Goal("1.35 x DDP with views", _DDP, "comm, views of buckets", 1.35),
            Goal("1.5 x Ray Train", _RAY, "comm", 1.5),
        ]
    return tuple(goals)


def _pairs(setting: str, way: str, share: float) -> Case:
    return Case(
        f"{setting}, {way}: time beside the bound, in pairs",
        "%",
        goals=(Goal(f"{share} of the bound", at_most=1 / share),),
    )


QUESTION = Question(
    name="training",
    text="How much of independent processes does data-parallel SGD reach?",
    cases=(
        Case("comm, one worker", "images/s"),
        Case("comm", "images/s"),
        Case("comm, views of buckets", "images/s"),
        Case("comm, parameter server on actors", "images/s"),
        Case("comm, allreduce", "images/s", goals=_goals("allreduce", 0.90)),
        _pairs("comm", "allreduce", 0.90),
        Case("comm, allreduce during backward", "images/s"),
        Case(
            "comm, parameter server",
            "images/s",
            goals=_goals("parameter server", 0.95),
        ),
        _pairs("comm", "parameter server", 0.95),
        Case("heavy, one worker", "images/s"),
        Case("heavy", "images/s"),
        Case("heavy, views of buckets", "images/s"),
        Case("heavy, allreduce", "images/s"),
        _pairs("heavy", "allreduce", 0.95),
        Case("heavy, parameter server", "images/s"),
        _pairs("heavy", "parameter server", 0.95),
    ),
    peers=("training_skate", _BOUND, _DDP, _RAY),
    groups=("comm", "heavy"),
    draw=draw,
)

if __name__ == "__main__":
    sys.exit(main(QUESTION, rounds=3))
