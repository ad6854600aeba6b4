"""What does an allreduce cost, from 4 KB to the gradients of ResNet-101?

Ranks are processes of this machine, float32 is summed, and a call ends on a rank when
its result is there. ``skate`` has arrays that its group made; ``copied`` passes
ordinary ones, as gloo and MPI do. The floor is what the ranks together cannot do
without: each adds its part of all arrays into one more, by NumPy, between two meetings.
"""

from __future__ import annotations

import sys

from benchmarks.harness import Case, Goal, Question, main

SIZES = {"4 KB": 1024, "1 MB": 1 << 18, "16 MB": 1 << 22, "178 MB": 44_549_160}
CALLS = {"4 KB": 2000, "1 MB": 200, "16 MB": 30, "178 MB": 9}
WARM_UP = {"4 KB": 200, "1 MB": 20, "16 MB": 5, "178 MB": 3}


def name_of(ranks: int, size: str, copied: bool = False) -> str:
    return f"{ranks} ranks, {size}{', copied' if copied else ''}"


def _goals(ranks: int, size: str) -> tuple[Goal, ...]:
    match ranks, size:
        case 2, "4 KB":
            return (Goal("at most 10 us", at_most=10e-6),)
        case 2, "1 MB":
            return (Goal("at most 0.1 ms", at_most=100e-6),)
        case 2, "178 MB":
            return (
                Goal("4 x gloo", against="allreduce_gloo", at_least=4),
                Goal("4 x MPI", against="allreduce_mpi", at_least=4),
                Goal("within 1.3 of the floor", "allreduce_floor", at_least=1 / 1.3),
            )
        case 4, "178 MB":
            return (Goal("3 x gloo", against="allreduce_gloo", at_least=3),)
    return ()


QUESTION = Question(
    name="allreduce",
    text="What does an allreduce cost?",
    cases=tuple(
        Case(
            name_of(ranks, size, copied),
            "us" if size in ("4 KB", "1 MB") else "ms",
            goals=() if copied else _goals(ranks, size),
        )
        for ranks in (2, 4)
        for size in SIZES
        for copied in (False, True)
    ),
    peers=(
        "allreduce_skate",
        "allreduce_gloo",
        "allreduce_mpi",
        "allreduce_floor",
    ),
    groups=("2", "4"),
)

if __name__ == "__main__":
    sys.exit(main(QUESTION, rounds=3))
