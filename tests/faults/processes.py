"""The processes of a session, found from outside: /proc, and nothing of skate's."""

from __future__ import annotations


def children(pid: int) -> list[int]:
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return [int(child) for child in file.read().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def descendants(pid: int) -> list[int]:
    return [d for child in children(pid) for d in (child, *descendants(child))]


def alive(pid: int) -> bool:
    return state_of(pid) not in ("Z", "")


def state_of(pid: int) -> str:
    """As the kernel tells it, such as "S" of one that sleeps; "": there is none."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def zygote_and_workers(driver: int) -> tuple[list[int], list[int]]:
    """Children of the supervisor, by their names."""
    found = [p for supervisor in children(driver) for p in children(supervisor)]
    zygotes = [pid for pid in found if name_of(pid) == "skate-zygote"]
    return zygotes, [pid for pid in found if name_of(pid) == "skate-worker"]


def name_of(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm") as file:
            return file.read().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def worker_pids(driver: int) -> list[int]:
    return zygote_and_workers(driver)[1]
