"""The trace of a session, as Perfetto shows it."""

from __future__ import annotations

from collections import defaultdict

from skate.engine.timeline import Event, chrome_trace


def test_lanes_of_one_thread_are_never_those_of_another() -> None:
    process = 2, 50
    overlapping = [
        Event(process, "run", 0, f"call {i}", 10 + i, 10**6 + 10 * i, i)
        for i in range(1005)
    ]
    other = Event(process, "run", 1, "another", 5, 9, 9999)
    events = chrome_trace([*overlapping, other], {}, 10**7)["traceEvents"]
    names = defaultdict(set)
    for event in events:
        if event["name"] == "thread_name":
            names[event["tid"]].add(event["args"]["name"])
    assert len(names) == 1006
    assert all(len(found) == 1 for found in names.values())
