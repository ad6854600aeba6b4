"""Laws of data-parallel training: layouts, and steps of ranks against one process."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import skate
from skate import train
from skate.train.bucket import LINE, lay_out

sizes = st.lists(st.integers(1, 5000), min_size=1, max_size=30)


@given(sizes, st.integers(1, 9), st.integers(1, 20_000), st.integers(1, 3000))
def test_a_layout_covers_every_parameter_once(
    sizes: list[int], world_size: int, bucket_items: int, piece_items: int
) -> None:
    layout = lay_out(
        sizes, world_size=world_size, bucket_items=bucket_items, piece_items=piece_items
    )
    assert [s.parameter for s in layout.slots] == list(reversed(range(len(sizes))))
    assert all(s.end - s.start == sizes[s.parameter] for s in layout.slots)
    assert all(s.start % LINE == 0 for s in layout.slots)

    covered = [n for b in layout.buckets for n in range(b.first, b.last)]
    assert covered == list(range(len(sizes)))
    for bucket in layout.buckets:
        members = layout.slots[bucket.first : bucket.last]
        assert (bucket.start, bucket.end) == (members[0].start, members[-1].end)

    at = {number: slot.start for number, slot in enumerate(layout.slots)}
    for piece in layout.pieces:
        assert piece.start == at[piece.slot]
        at[piece.slot] = piece.end
        assert 0 < piece.end - piece.start <= piece_items + LINE
        assert piece.owner < world_size
        first = piece.owner * layout.share
        assert first <= piece.start
        assert piece.end <= first + layout.share
    assert at == {number: slot.end for number, slot in enumerate(layout.slots)}


dtypes = st.sampled_from(["float32", "float64", "float16", "int32", "uint8"])
shapes = st.lists(st.integers(0, 6), min_size=0, max_size=3).map(tuple)


def check_allreduce(config: dict[str, Any]) -> None:
    context = train.context()
    for number, (shape, dtype, op) in enumerate(config["calls"]):
        parts = [
            np.random.default_rng((number, rank)).integers(0, 50, shape).astype(dtype)
            for rank in range(context.world_size)
        ]
        x = parts[context.rank].copy()
        context.allreduce(x, op)
        wide = np.stack(parts).astype(
            "float64" if np.dtype(dtype).kind == "f" else dtype
        )
        expected = (
            getattr(wide, op)(axis=0, dtype=wide.dtype)
            if op
            in (
                "sum",
                "mean",
            )
            else getattr(wide, op)(axis=0)
        )
        np.testing.assert_allclose(x, expected.astype(dtype), rtol=1e-3)
    train.context().report({"checked": len(config["calls"])})


@pytest.mark.parametrize("engine", ["embedded", "inline"])
def test_allreduce_equals_numpy_for_any_shape_and_number_of_ranks(engine: str) -> None:
    skate.init(engine, num_cpus=2)

    calls = st.tuples(shapes, dtypes, st.sampled_from(["sum", "mean", "max", "min"]))
    allowed = calls.filter(lambda c: c[2] != "mean" or np.dtype(c[1]).kind == "f")

    @settings(max_examples=3, deadline=None)
    @given(st.integers(1, 5), st.lists(allowed, min_size=20, max_size=40))
    def check(world_size: int, calls: list[Any]) -> None:
        train.run(check_allreduce, world_size, config={"calls": calls})

    check()


# Training -------------------------------------------------------------------------


def make(case: dict[str, Any]) -> tuple[Any, Any]:
    """A model with layers of any sizes, and its optimizer."""
    import torch

    torch.manual_seed(1)
    widths = [5, *case["widths"], 3]
    layers: list[Any] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [torch.nn.Linear(inputs, outputs), torch.nn.Tanh()]
    model = torch.nn.Sequential(*layers)
    kind, options = case["optimizer"]
    head = list(layers[-2].parameters())
    rest = [p for layer in layers[:-2] for p in layer.parameters()]
    groups = [{"params": rest}, {"params": head, "lr": options["lr"] / 2}]
    groups = [group for group in groups if group["params"]]
    return model, getattr(torch.optim, kind)(groups, **options)


def descend(case: dict[str, Any], rank: int, world_size: int) -> Any:
    """Some steps with this rank's share of every batch; the weights then."""
    import torch

    model, optimizer = make(case)
    if world_size > 1:
        from skate.train.torch import DistributedOptimizer

        optimizer = DistributedOptimizer(optimizer, model, **case["ways"])
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    for step in range(4):
        rng = np.random.default_rng(step)
        x = torch.from_numpy(rng.normal(size=(8, 5)).astype("f4"))[rank::world_size]
        optimizer.zero_grad()
        model(x).square().mean().backward()
        if case["clip"] and hasattr(optimizer, "clip_grad_norm_"):
            optimizer.clip_grad_norm_(case["clip"])
        elif case["clip"]:
            torch.nn.utils.clip_grad_norm_(model.parameters(), case["clip"])
        optimizer.step()
        schedule.step()
    return torch.nn.utils.parameters_to_vector(model.parameters()).detach().numpy()


def descend_together(cases: list[dict[str, Any]]) -> None:
    context = train.context()
    for case in cases:
        weights = descend(case, context.rank, context.world_size)
        top = context.allreduce(weights.copy(), "max")
        low = context.allreduce(weights.copy(), "min")
        context.report({"weights": weights.copy(), "equal": bool((top == low).all())})


optimizers = st.sampled_from(
    [
        ("SGD", {"lr": 0.1}),
        ("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
        ("Adam", {"lr": 0.01}),
        ("AdamW", {"lr": 0.01, "amsgrad": True}),
    ]
)
ways = st.sampled_from(
    [
        {"sync": "parameter_server"},
        {"sync": "allreduce", "overlap": False},
        {"sync": "allreduce", "overlap": True},
        {"sync": "allreduce", "shard": False},
    ]
)


cases = st.fixed_dictionaries(
    {
        "widths": st.lists(st.integers(1, 40), max_size=3),
        "optimizer": optimizers,
        "clip": st.sampled_from([None, 0.01]),
        "ways": st.builds(
            lambda way, size: {**way, "bucket_bytes": size},
            ways,
            st.sampled_from([1, 300, 1 << 20]),
        ),
    }
)


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("engine", ["embedded", "inline"])
def test_ranks_that_step_together_do_what_one_does_with_all_rows(
    engine: str, world_size: int
) -> None:
    pytest.importorskip("torch")
    skate.init(engine, num_cpus=2, preload=("torch",))

    # Processes cost more than steps: many cases for one start of the ranks.
    @settings(max_examples=1, deadline=None)
    @given(st.lists(cases, min_size=12, max_size=12))
    def check(cases: list[dict[str, Any]]) -> None:
        found = train.run(descend_together, world_size, config=cases).history
        for case, metrics in zip(cases, found, strict=True):
            assert metrics["equal"], case
            alone = descend(case, 0, 1)
            np.testing.assert_allclose(
                metrics["weights"], alone, rtol=2e-4, atol=2e-5, err_msg=repr(case)
            )

    check()
