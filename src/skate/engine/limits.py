"""What this process may use of the machine: its affinity, and the cgroups above it.

Both versions of cgroups are read. A limit of any group from this process's own up to
the root counts; in a container, the root is the container's.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator

_ROOT = "/"  # strings: pathlib would be a tenth of the time to import skate


def usable_cpus() -> int:
    """CPUs that this process may use, rounded up, and at least 1."""
    try:
        cpus = len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        cpus = os.cpu_count() or 1
    return max(1, math.ceil(min(cpus, cpu_quota() or cpus)))


def cpu_quota(root: str = _ROOT) -> float | None:
    """How many CPUs the cgroups allow to be used at a time; None: all there are."""
    quotas = []
    for version, folder in _folders("cpu", root):
        if version == 2:
            quota, _, period = _read(folder, "cpu.max").partition(" ")
        else:
            quota = _read(folder, "cpu.cfs_quota_us")
            period = _read(folder, "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(quota) and int(period):
            quotas.append(int(quota) / int(period))  # "max" and "-1" are no limits
    return min(quotas, default=None)


def memory_bytes(root: str = _ROOT) -> int:
    """Of the machine, or what the cgroups allow if that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([total, *(limit for limit, _ in _memory_limits(root))])


def memory_use(root: str = _ROOT) -> float:
    """The share of the memory in use, from 0 to 1: where it is scarcest.

    Memory that the kernel can take back at once, such as clean file pages, is free.
    What cannot be read does not count: 0 if nothing can.
    """
    kib = {
        words[0]: int(words[1])
        for line in _read(root, "proc/meminfo").splitlines()
        if len(words := line.split()) > 1 and words[1].isdigit()
    }
    total, free = kib.get("MemTotal:"), kib.get("MemAvailable:")
    shares = [1 - free / total] if total and free is not None else []
    shares += [use / limit for limit, use in _memory_limits(root) if limit]
    return max(shares, default=0.0)


def _memory_limits(root: str) -> Iterator[tuple[int, int]]:
    """Limit and use, in bytes, of each cgroup above this process that has a limit."""
    for version, folder in _folders("memory", root):
        names = ("memory.max", "memory.current", "inactive_file")
        if version == 1:
            names = (
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_inactive_file",
            )
        limit, use = (_read(folder, name) for name in names[:2])
        if not limit.isdigit() or not use.isdigit():
            continue
        lines = (line.split() for line in _read(folder, "memory.stat").splitlines())
        cache = next((int(n) for key, n in lines if key == names[2]), 0)
        yield int(limit), max(0, int(use) - cache)


def _folders(controller: str, root: str) -> Iterator[tuple[int, str]]:
    """Version and folder of each cgroup that this process is in, up to the root."""
    mounts = os.path.join(root, "sys/fs/cgroup")
    for line in _read(root, "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            found = [(2, mounts), (2, os.path.join(mounts, "unified"))]
        elif controller in controllers.split(","):
            names = (controllers, controller)
            found = [(1, os.path.join(mounts, name)) for name in names]
        else:
            continue
        for version, mount in dict.fromkeys(found):
            level = path.strip("/")
            while True:
                if os.path.isdir(folder := os.path.join(mount, level)):
                    yield version, folder
                if not level:
                    break
                level = os.path.dirname(level)


def _read(folder: str, name: str) -> str:
    try:
        with open(os.path.join(folder, name)) as file:
            return file.read().strip()
    except OSError:
        return ""
