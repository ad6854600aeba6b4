"""Handing out GPUs: whole ones, shares, and those of placement groups."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skate.engine.gpus import MAX_GPUS, NO_GPUS, Gpus, Share, find_gpus

VARIABLE = "CUDA_VISIBLE_DEVICES"


def test_more_gpus_than_have_ids_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(ValueError, match=f"at most {MAX_GPUS}, not 1e"):
        find_gpus(1e9)


def take(gpus: Gpus, amount: float) -> Share:
    share = gpus.find({"GPU": amount})
    assert share is not None
    gpus.take(share)
    return share


def test_what_needs_none_gets_none() -> None:
    assert Gpus([0], 1).find({"CPU": 1}) == NO_GPUS


def test_shares_fill_a_gpu_before_the_next_is_touched() -> None:
    gpus = Gpus([0, 1], 2)
    assert [take(gpus, 0.3).ids for _ in range(4)] == [(0,), (0,), (0,), (1,)]


def test_a_share_goes_where_it_fits_best() -> None:
    gpus = Gpus([0, 1], 2)
    first = take(gpus, 0.5)
    take(gpus, 0.8)
    gpus.give(first)
    assert take(gpus, 0.2).ids == (1,)
    assert take(gpus, 1).ids == (0,)


def test_free_parts_of_several_do_not_make_a_whole_one() -> None:
    gpus = Gpus([0, 1], 2)
    take(gpus, 0.6)
    take(gpus, 0.6)
    assert gpus.find({"GPU": 0.5}) is None
    assert gpus.find({"GPU": 1}) is None
    assert gpus.find({"GPU": 0.4}) is not None


def test_a_group_has_its_own_until_it_is_closed() -> None:
    gpus = Gpus([0, 1], 2)
    bundles = [{"GPU": 1.0}, {"CPU": 1.0}, {"GPU": 0.5}]
    assert gpus.can_open(bundles)
    gpus.open("g", bundles)
    assert gpus.find({"GPU": 1}) is None
    assert take(gpus, 0.5).ids == (1,)
    inside = gpus.find({"GPU_group_g": 1.0})
    assert inside is not None
    gpus.take(inside)
    assert inside.ids == (0,)
    assert gpus.find({"GPU_group_g": 0.5, "GPU_group_0_g": 0.5}) is None
    half = gpus.find({"GPU_group_g": 0.5})
    assert half is not None
    assert half.ids == (1,)
    gpus.close("g")
    gpus.give(inside)  # what was in it has ended a little later
    assert take(gpus, 1).ids == (0,)


@given(st.lists(st.sampled_from([0.1, 0.25, 0.5, 1, 2, -1]), max_size=40))
def test_no_gpu_is_handed_out_twice(wishes: list[float]) -> None:
    gpus = Gpus([0, 1, 2], 3)
    held: list[Share] = []
    for wish in wishes:
        if wish < 0:
            if held:
                gpus.give(held.pop(0))
            continue
        share = gpus.find({"GPU": wish})
        if share is not None:
            gpus.take(share)
            held.append(share)
            assert sum(units for _, units in share.units) == round(wish * 10_000)
        for id_ in (0, 1, 2):
            of_it = [n for one in held for other, n in one.units if other == id_]
            assert sum(of_it) <= 10_000
    for share in held:
        gpus.give(share)
    assert gpus.find({"GPU": 3}) is not None


def test_ids_come_from_the_variable_or_count_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert find_gpus(2) == (2, (0, 1))
    assert find_gpus(0.5) == (0.5, (0,))
    assert find_gpus(0) == (0, ())
    monkeypatch.setenv(VARIABLE, "3, GPU-abc")
    assert find_gpus(None) == (2.0, ("3", "GPU-abc"))
    assert find_gpus(1) == (1, ("3",))
    for nothing in ("", "-1", "NoDevFiles"):
        monkeypatch.setenv(VARIABLE, nothing)
        assert find_gpus(None) == (0.0, ())
