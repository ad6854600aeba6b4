"""Limits of cgroups, read from trees of files as kernels and containers show them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from skate.engine import limits

MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
GIB = 1 << 30


def tree(root: Path, **files: str) -> str:
    """Files below ``root``; in names, __ stands for a slash and _DOT_ for a dot."""
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(root)


def test_without_cgroups_there_is_no_limit(tmp_path: Path) -> None:
    assert limits.cpu_quota(str(tmp_path)) is None
    assert limits.memory_bytes(str(tmp_path)) == MACHINE


def test_the_lowest_limit_on_the_way_to_the_root_counts(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        proc__self__cgroup="0::/user.slice/app.scope\n",
        **{
            "sys__fs__cgroup__user.slice__cpu_DOT_max": "150000 100000\n",
            "sys__fs__cgroup__user.slice__app.scope__cpu_DOT_max": "max 100000\n",
            "sys__fs__cgroup__user.slice__memory_DOT_max": f"{GIB}\n",
            "sys__fs__cgroup__user.slice__memory_DOT_current": "1000\n",
            "sys__fs__cgroup__user.slice__app.scope__memory_DOT_max": "max\n",
        },
    )
    assert limits.cpu_quota(root) == 1.5
    assert limits.memory_bytes(root) == min(GIB, MACHINE)


def test_a_container_sees_its_own_group_as_the_root(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        proc__self__cgroup="0::/\n",
        sys__fs__cgroup__cpu_DOT_max="200000 100000\n",
    )
    assert limits.cpu_quota(root) == 2.0


def test_version_1_in_a_container_that_shows_the_paths_outside(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        proc__self__cgroup="4:memory:/docker/1f\n2:cpu,cpuacct:/docker/1f\n",
        **{
            "sys__fs__cgroup__cpu,cpuacct__cpu_DOT_cfs_quota_us": "50000\n",
            "sys__fs__cgroup__cpu,cpuacct__cpu_DOT_cfs_period_us": "100000\n",
            "sys__fs__cgroup__memory__memory_DOT_limit_in_bytes": f"{GIB}\n",
            "sys__fs__cgroup__memory__memory_DOT_usage_in_bytes": f"{GIB // 2}\n",
            "sys__fs__cgroup__memory__memory_DOT_stat": (
                f"cache 5\ntotal_inactive_file {GIB // 4}\n"
            ),
            "proc__meminfo": "MemTotal: 100 kB\nMemAvailable: 90 kB\n",
        },
    )
    assert limits.cpu_quota(root) == 0.5
    assert limits.memory_bytes(root) == min(GIB, MACHINE)
    assert limits.memory_use(root) == 0.25


@pytest.mark.parametrize(
    "text", ["", "MemTotal: 100 kB\n", "MemTotal:\nMemAvailable: 9 kB\n", "nonsense"]
)
def test_memory_that_cannot_be_read_does_not_count(tmp_path: Path, text: str) -> None:
    root = tree(tmp_path, proc__meminfo=text)
    assert limits.memory_use(root) == 0.0


@pytest.mark.parametrize("quota", ["-1", "0", "", "nonsense"])
def test_what_is_no_limit_is_none(tmp_path: Path, quota: str) -> None:
    root = tree(
        tmp_path,
        proc__self__cgroup="2:cpu:/\n",
        sys__fs__cgroup__cpu__cpu_DOT_cfs_quota_us=quota,
        sys__fs__cgroup__cpu__cpu_DOT_cfs_period_us="100000",
    )
    assert limits.cpu_quota(root) is None
    assert limits.usable_cpus() >= 1
