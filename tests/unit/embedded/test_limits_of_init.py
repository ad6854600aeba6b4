"""What ``skate.init`` refuses before it starts anything."""

from __future__ import annotations

import pytest

pytest.importorskip("skate._core", reason="skate's C++ core is not built")

import skate


@pytest.mark.parametrize("wanted", [(16 << 40) + 1, 10**30])
def test_a_store_that_no_address_space_holds_is_refused(wanted: int) -> None:
    with pytest.raises(ValueError, match=f"at most 17592186044416 .*, not {wanted}"):
        skate.init("embedded", num_cpus=1, object_store_memory=wanted)
