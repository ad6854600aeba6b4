"""What ``skate.init`` refuses before it starts anything, and what it takes."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("skate._core", reason="skate's C++ core is not built")

import skate


@pytest.mark.parametrize("wanted", [(16 << 40) + 1, 10**30])
def test_a_store_that_no_address_space_holds_is_refused(wanted: int) -> None:
    with pytest.raises(ValueError, match=f"at most 17592186044416 .*, not {wanted}"):
        skate.init("embedded", num_cpus=1, object_store_memory=wanted)


def test_a_spill_limit_that_no_disk_has_is_no_limit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SKATE_SPILL_DIR", str(tmp_path))
    monkeypatch.setenv("SKATE_SPILL_LIMIT", str(1 << 64))
    with skate.init("embedded", num_cpus=1, object_store_memory=8 << 20):
        assert skate.get(skate.put("kept")) == "kept"
