"""The merge of gradient projection, worked out by hand, and its configuration."""

import math
from typing import Any

import pytest
import torch
import yaml
from small import small
from torch import Tensor

from roli_fast.train.experiment import SCHEMA
from roli_fast.train.gradient_projection import GradientProjection


def merge(
    start: dict[str, Tensor],
    natural: dict[str, Tensor],
    adversarial: dict[str, Tensor],
    **fields: Any,
) -> dict[str, Tensor]:
    return GradientProjection(**fields).merged(start, natural, adversarial)


def merged(natural: list[float], own: list[float], **options: Any) -> list[float]:
    """One tensor, from 0, in fp64."""
    states = ([0.0] * len(own), natural, own)
    start, clean, adversarial = ({"w": torch.tensor(s, dtype=torch.float64)} for s in states)
    return merge(start, clean, adversarial, **options)["w"].tolist()


HALF = [0.5 * 3, 0.5 * 4]
"""(1 - beta) g_a for g_a = (3, 4), which has length 5."""


@pytest.mark.parametrize(
    ("natural", "projection", "expected"),
    [
        # g_n = (2, 0): cosine 3 * 2 / (5 * 2) = 0.6, so 0.6 * 2 = 1.2; truly 6 / 4 * 2 = 3
        ([2.0, 0.0], "cosine", [0.5 * 1.2 + 1.5, 2.0]),
        ([2.0, 0.0], "true", [0.5 * 3 + 1.5, 2.0]),
        # the same direction: all of g_n, or truly all of g_a
        ([6.0, 8.0], "cosine", [0.5 * 6 + 1.5, 0.5 * 8 + 2.0]),
        ([6.0, 8.0], "true", [3.0, 4.0]),
        # cosine 0, below it, and no change at all
        ([-4.0, 3.0], "cosine", HALF),
        ([-4.0, 3.0], "true", HALF),
        ([-2.0, 0.0], "cosine", HALF),
        ([-2.0, 0.0], "true", HALF),
        ([0.0, 0.0], "cosine", HALF),
        ([0.0, 0.0], "true", HALF),
    ],
)
def test_one_tensor(natural: list[float], projection: str, expected: list[float]) -> None:
    got = merged(natural, [3.0, 4.0], projection=projection)
    assert got == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(("beta", "expected"), [(0.0, [3.0, 4.0]), (1.0, [1.2, 0.0])])
def test_the_ends_of_beta(beta: float, expected: list[float]) -> None:
    assert merged([2.0, 0.0], [3.0, 4.0], beta=beta) == pytest.approx(expected)


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


def test_huge_and_tiny_changes_neither_overflow_nor_vanish() -> None:
    """Squares of 1e25 leave fp32; those of 1e-30 are 0 in it."""
    for size in (1e25, 1e-30):
        start = {"w": torch.zeros(2)}
        changed = {"w": torch.tensor([size, 0.0])}
        out = merge(start, changed, changed, projection="true")["w"]
        assert out.tolist() == pytest.approx([float(changed["w"][0]), 0.0], rel=1e-6)


def batch_norm(weight: float, mean: float, count: int) -> dict[str, Tensor]:
    """A state dict with everything in it that is no plain weight."""
    return {
        "norm.weight": torch.tensor([weight, 0.0]),
        "norm.running_mean": torch.tensor([mean, 0.0]),
        "norm.running_var": torch.tensor([1.0, 1.0 + mean]),
        "norm.num_batches_tracked": torch.tensor(count),
        "scale": torch.tensor(float(count)),
        "index": torch.tensor([count, count]),
        "mask": torch.tensor([count > 5, True]),
    }


@pytest.mark.parametrize("statistics", [True, False])
def test_scalars_integers_and_statistics(statistics: bool) -> None:
    states = batch_norm(0.0, 0.0, 0), batch_norm(1.0, 2.0, 5), batch_norm(1.0, -2.0, 7)
    out = merge(*states, merge_statistics=statistics)
    own = states[2]
    assert list(out) == list(own)
    assert out["norm.weight"].tolist() == [1.0, 0.0]  # cosine 1: 0.5 * 1 + 0.5 * 1
    for name in ("norm.num_batches_tracked", "scale", "index", "mask"):
        assert torch.equal(out[name], own[name]) and out[name].dtype == own[name].dtype
        assert out[name].data_ptr() != own[name].data_ptr()
    if not statistics:
        assert torch.equal(out["norm.running_mean"], own["norm.running_mean"])
        assert torch.equal(out["norm.running_var"], own["norm.running_var"])
    else:  # each by itself: cosine -1
        assert out["norm.running_mean"].tolist() == [-1.0, 0.0]
        assert out["norm.running_var"].tolist() == [1.0, 0.0]


def test_every_tensor_has_a_cosine_of_its_own() -> None:
    zero, one = torch.zeros(1), torch.ones(1)
    out = merge({"a": zero, "b": zero}, {"a": one, "b": -one}, {"a": one, "b": one})
    assert (out["a"].item(), out["b"].item()) == (1.0, 0.5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_types_stay(dtype: torch.dtype) -> None:
    start, changed = {"w": torch.zeros(2, dtype=dtype)}, {"w": torch.ones(2, dtype=dtype)}
    out = merge(start, changed, changed)["w"]
    assert out.dtype == dtype and out.tolist() == [1.0, 1.0]


def test_a_random_tensor_against_numpy_like_arithmetic() -> None:
    source = torch.Generator().manual_seed(0)
    start, natural, own = (torch.randn(3, 4, 5, generator=source).double() for _ in range(3))
    out = merge({"w": start}, {"w": natural}, {"w": own}, beta=0.3)["w"]
    n = (natural - start).flatten().tolist()
    a = (own - start).flatten().tolist()
    dot = math.fsum(x * y for x, y in zip(n, a, strict=True))
    lengths = [math.sqrt(math.fsum(x * x for x in v)) for v in (n, a)]
    cosine = max(0.0, dot / (lengths[0] * lengths[1]))
    assert 0 < cosine < 1
    expected = [
        s + 0.3 * cosine * x + 0.7 * y
        for s, x, y in zip(start.flatten().tolist(), n, a, strict=True)
    ]
    assert out.flatten().tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], None),
        (["--finetune.gradient_projection.beta=0.2"], GradientProjection(beta=0.2)),
        (
            [
                "--finetune.gradient_projection.projection=true",
                "--finetune.gradient_projection.natural=false",
                "--finetune.gradient_projection.merge_statistics=false",
            ],
            GradientProjection(projection="true", natural=False, merge_statistics=False),
        ),
    ],
)
def test_flags_and_the_saved_file(flags: list[str], expected: GradientProjection | None) -> None:
    experiment = small(*flags)
    assert experiment.finetune.gradient_projection == expected
    again = SCHEMA.build(yaml.safe_load(SCHEMA.to_yaml(experiment)), [])
    assert again == experiment
    assert experiment.probe.gradient_projection is None
