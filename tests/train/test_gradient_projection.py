"""The merge of gradient projection, worked out by hand, and its configuration."""

from typing import Any

import pytest
import torch
from torch import Tensor

from roli_fast.train.gradient_projection import GradientProjection


def merge(
    start: dict[str, Tensor],
    natural: dict[str, Tensor],
    adversarial: dict[str, Tensor],
    **fields: Any,
) -> dict[str, Tensor]:
    return GradientProjection(**fields).merged(start, natural, adversarial)


HALF = [0.5 * 3, 0.5 * 4]
"""(1 - beta) g_a for g_a = (3, 4), which has length 5."""


@pytest.mark.parametrize(
    ("natural", "options", "expected"),
    [
        # g_n = (2, 0): cosine 3 * 2 / (5 * 2) = 0.6, so 0.6 * 2 = 1.2; truly 6 / 4 * 2 = 3
        ([2.0, 0.0], {}, [0.5 * 1.2 + 1.5, 2.0]),
        ([2.0, 0.0], {"projection": "true"}, [0.5 * 3 + 1.5, 2.0]),
        # the same direction: all of g_n, or truly all of g_a
        ([6.0, 8.0], {}, [0.5 * 6 + 1.5, 0.5 * 8 + 2.0]),
        ([6.0, 8.0], {"projection": "true"}, [3.0, 4.0]),
        # cosine 0, below it, and no change at all
        ([-4.0, 3.0], {}, HALF),
        ([-2.0, 0.0], {}, HALF),
        ([-2.0, 0.0], {"projection": "true"}, HALF),
        ([0.0, 0.0], {}, HALF),
        ([0.0, 0.0], {"projection": "true"}, HALF),
        # the ends of beta
        ([2.0, 0.0], {"beta": 0.0}, [3.0, 4.0]),
        ([2.0, 0.0], {"beta": 1.0}, [1.2, 0.0]),
    ],
)
def test_one_tensor(natural: list[float], options: dict[str, Any], expected: list[float]) -> None:
    """From 0, in fp64."""
    states = ([0.0, 0.0], natural, [3.0, 4.0])
    start, clean, own = ({"w": torch.tensor(s, dtype=torch.float64)} for s in states)
    assert merge(start, clean, own, **options)["w"].tolist() == pytest.approx(expected, abs=1e-15)


def test_it_starts_from_the_weights_and_rounds_once() -> None:
    """fp32 weights of 1000 whose updates are far smaller: sums of squares in fp64."""
    start = {"w": torch.full((2, 2), 1000.0)}
    natural = {"w": start["w"] + torch.tensor([[1.0, 0.0], [0.0, 0.0]])}
    own = {"w": start["w"] + torch.tensor([[1.0, 1.0], [1.0, 1.0]])}
    before = [state["w"].clone() for state in (start, natural, own)]
    out = merge(start, natural, own, beta=0.25)["w"]  # cosine 1 / 2, over the whole tensor
    expected = [[1000 + 0.25 * 0.5 + 0.75, 1000.75], [1000.75, 1000.75]]
    assert out.dtype == torch.float32 and out.tolist() == expected
    assert all(map(torch.equal, before, (start["w"], natural["w"], own["w"])))


@pytest.mark.parametrize(
    ("size", "dtype"),
    [(1e25, torch.float32), (1e-30, torch.float32), (1.0, torch.bfloat16), (1.0, torch.float16)],
)
def test_types_stay_and_no_change_overflows_or_vanishes(size: float, dtype: torch.dtype) -> None:
    """Squares of 1e25 leave fp32; those of 1e-30 are 0 in it."""
    changed = {"w": torch.tensor([size, 0.0], dtype=dtype)}
    out = merge({"w": torch.zeros(2, dtype=dtype)}, changed, changed, projection="true")["w"]
    assert out.dtype == dtype and out.tolist() == pytest.approx(changed["w"].tolist(), rel=1e-6)


def batch_norm(weight: float, mean: float, count: int) -> dict[str, Tensor]:
    """A state dict with everything in it that is no plain weight."""
    return {
        "norm.weight": torch.tensor([weight, 0.0]),
        "norm.bias": torch.tensor([-weight]),
        "norm.running_mean": torch.tensor([mean, 0.0]),
        "norm.running_var": torch.tensor([1.0, 1.0 + mean]),
        "norm.num_batches_tracked": torch.tensor(count),
        "scale": torch.tensor(float(count)),
        "index": torch.tensor([count, count]),
        "mask": torch.tensor([count > 5, True]),
    }


@pytest.mark.parametrize("statistics", [True, False])
def test_each_tensor_by_itself_but_for_scalars_integers_and_statistics(statistics: bool) -> None:
    start, natural = batch_norm(0.0, 0.0, 0), batch_norm(1.0, 2.0, 5)
    own = batch_norm(1.0, -2.0, 7) | {"norm.bias": torch.tensor([1.0])}
    out = merge(start, natural, own, merge_statistics=statistics)
    assert list(out) == list(own)
    assert out["norm.weight"].tolist() == [1.0, 0.0]  # cosine 1: 0.5 * 1 + 0.5 * 1
    assert out["norm.bias"].tolist() == [0.5]  # cosine -1
    for name in ("norm.num_batches_tracked", "scale", "index", "mask"):
        assert torch.equal(out[name], own[name]) and out[name].dtype == own[name].dtype
    means = [-1.0, 0.0] if statistics else [-2.0, 0.0]  # cosine -1, or its own
    assert out["norm.running_mean"].tolist() == means
    assert out["norm.running_var"].tolist() == [1.0, 0.0 if statistics else -1.0]
