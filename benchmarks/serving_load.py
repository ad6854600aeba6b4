"""What do many small requests, updates and the death of a replica cost a deployment?

    .venv/bin/python -m benchmarks.serving_load                 # about a minute
    .venv/bin/python -m benchmarks.serving_load --only small    # or updates, or kill

- `small 128` and `small 64`: 4 processes keep 32, or 16, single states of 4 KB each
  outstanding, for a model that takes 10 ms a batch of 64; the latter with
  batch_wait_s=0.002. As shares of the bound of 6,400 states a second.
- `updates`: the large row, two batches in flight; windows with 20 updates of 10 MB a
  second take turns with windows without. The share of the rate that is left.
- `kill`: the only replica gets SIGKILL under load, with two batches in flight. Seconds
  until the rate is that of before again, and how many requests ended with which error;
  in the second line, requests are sent again (`pure=True`).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import threading
import time
from collections import Counter, deque
from pathlib import Path

import numpy as np

import skate
from skate import serve

from . import harness
from .served.models import BATCH, ROWS, Sleep, states_of


class Killable(Sleep):
    """Says in which process it runs."""

    def evaluate(self, states: np.ndarray) -> np.ndarray:
        outputs = super().evaluate(states)
        outputs[:, 7] = os.getpid()
        return outputs


@skate.remote(num_cpus=0)
class Asker:
    """Keeps single states outstanding."""

    def run(
        self, deployment: serve.Deployment, outstanding: int, seconds: float
    ) -> tuple[float, float, list[float]]:
        state = states_of(ROWS["small"], 1)
        sent: deque[serve.Answer] = deque()
        ended: list[float] = []
        start = time.monotonic()
        while time.monotonic() < start + seconds:
            while len(sent) < outstanding:
                sent.append(deployment.submit(state))
            sent.popleft().result()
            ended.append(time.monotonic())
        for answer in sent:
            answer.result()
        return start, start + seconds, ended


def small(outstanding: int, seconds: float, batch_wait_s: float) -> float:
    row = ROWS["small"]
    with serve.deploy(Sleep, row.seconds, batch_wait_s=batch_wait_s) as deployment:
        askers = [Asker.remote() for _ in range(4)]
        skate.get([asker.__ray_ready__.remote() for asker in askers])
        found = skate.get(
            [asker.run.remote(deployment, outstanding, seconds) for asker in askers]
        )
    start = max(begin for begin, _, _ in found) + 0.2
    end = min(until for _, until, _ in found)
    answered = sum(start < t <= end for _, _, ended in found for t in ended)
    return answered / (end - start) / row.bound


def updates(seconds: float) -> float:
    row = ROWS["large"]
    weights = np.zeros(10_000_000 // 4, np.float32)
    slots = [states_of(row) for _ in range(3)]
    with serve.deploy(Sleep, row.seconds) as deployment:

        def window() -> float:
            start = time.perf_counter()
            n = 0
            sent: deque[serve.Answer] = deque()
            while time.perf_counter() < start + seconds:
                sent.append(deployment.submit(slots[n % 3]))
                n += 1
                if len(sent) == 2:
                    sent.popleft().result()
            for answer in sent:
                answer.result()
            return n * BATCH / (time.perf_counter() - start)

        def update(stop: threading.Event) -> None:
            while not stop.wait(0.05):
                deployment.update(weights)

        window()
        shares = []
        for _ in range(3):
            plain = window()
            stop = threading.Event()
            updater = threading.Thread(target=update, args=(stop,))
            updater.start()
            shares.append(window() / plain)
            stop.set()
            updater.join()
        return statistics.median(shares)


def kill(*, pure: bool) -> tuple[float, Counter[str]]:
    """Seconds until the rate is back, and the errors of requests by name."""
    states = states_of(ROWS["small"])
    before_s, after_s, window_s = 1.0, 2.5, 0.25
    errors: Counter[str] = Counter()
    ended: list[float] = []
    with serve.deploy(Killable, 0.002, pure=pure) as deployment:
        victim = int(deployment.evaluate(states)[0, 7])
        sent = deque(deployment.submit(states) for _ in range(2))
        start = time.perf_counter()
        killed = 0.0
        while sent:
            try:
                sent.popleft().result(timeout=30)
                ended.append(time.perf_counter())
            except skate.exceptions.SkateError as error:
                errors[type(error).__name__] += 1
            now = time.perf_counter()
            if not killed and now > start + before_s:
                os.kill(victim, signal.SIGKILL)
                killed = time.perf_counter()
            if not killed or now < killed + after_s:
                sent.append(deployment.submit(states))
    rate = sum(t <= killed for t in ended) / (killed - start)
    for t in (t for t in ended if t > killed):
        answered = sum(t <= other < t + window_s for other in ended)
        if answered >= 0.95 * rate * window_s:
            return t - killed, errors
    return float("inf"), errors


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0)
    parts = ["small", "updates", "kill"]
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    parser.add_argument("--results", type=Path, default=harness.RESULTS)
    args = parser.parse_args()
    harness.refuse_debug_build()
    skate.init("embedded", num_cpus=len(os.sched_getaffinity(0)))
    figures: dict[str, float] = {}
    if "small" in args.only:
        figures["small 128, share of the bound"] = small(32, args.seconds, 0.0)
        figures["small 64, share of the bound"] = small(16, args.seconds, 0.002)
    if "updates" in args.only:
        figures["updates, share of the rate"] = updates(args.seconds)
    for pure in (False, True) if "kill" in args.only else ():
        again = "sent again" if pure else "not sent again"
        runs = [kill(pure=pure) for _ in range(3)]
        name = f"kill, requests {again}: "
        back = statistics.median(seconds for seconds, _ in runs)
        figures[name + "seconds until the rate is back"] = back
        for error in sorted(set().union(*(errors for _, errors in runs))):
            most = max(errors[error] for _, errors in runs)
            figures[name + f"{error}, at most"] = most
    skate.shutdown()
    lines = [f"- {name}: {value:.3f}" for name, value in figures.items()]
    machine = harness.environment()
    text = "\n".join(
        [
            "# What do small requests, updates and a death cost a deployment?",
            "",
            "{date}, commit {commit}, {cpu}, {cores} cores.".format(**machine),
            "",
            *lines,
        ]
    )
    args.results.mkdir(parents=True, exist_ok=True)
    path = args.results / "serving_load.json"
    path.write_text(json.dumps({"environment": machine, **figures}, indent=1) + "\n")
    path.with_suffix(".md").write_text(text + "\n")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
