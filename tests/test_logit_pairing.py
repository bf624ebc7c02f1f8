"""RAMP's pairing against numbers worked by hand, and what must not change it."""

import math

import pytest
import torch
from torch import Tensor
from waits import waits

from roli_fast.errors import ArgumentError
from roli_fast.losses import PAIR_DISTANCES, logit_pairing

L3 = math.log(3.0)
SOURCE = torch.tensor([[L3, 0.0], [0.0, L3], [0.0, L3]], dtype=torch.float64)
"""p = (3/4, 1/4), (1/4, 3/4), (1/4, 3/4)."""
TARGET = torch.tensor([[0.0, 0.0], [L3, 0.0], [0.0, L3]], dtype=torch.float64)
"""p = (1/2, 1/2), (3/4, 1/4), (1/4, 3/4)."""
FIRST = torch.tensor([0, 0, 0])
"""The source is right on the first sample alone."""
FIRST_AND_LAST, NOBODY = torch.tensor([0, 0, 1]), torch.tensor([1, 0, 0])

BY_HAND = {
    "kl": 0.75 * math.log(1.5) + 0.25 * math.log(0.5),
    "mse": 0.5 * (1 / 16 + 1 / 16),
    "cosine": 1 - 2 / math.sqrt(5),  # 1/2 over (sqrt(10) / 4) (1 / sqrt 2)
}
"""The first sample's distance. From target to source the KL would be ln(4/3) / 2."""

kinds = pytest.mark.parametrize("kind", PAIR_DISTANCES)


def leaves(*logits: Tensor) -> list[Tensor]:
    return [tensor.clone().requires_grad_(True) for tensor in logits]


@kinds
def test_by_hand(kind: str) -> None:
    """A mean over those who are right: the last sample's distance is 0, so the mean over two is
    half, and the second is in neither. With nobody right it is 0."""
    assert set(BY_HAND) == set(PAIR_DISTANCES)
    for y, truth in ((FIRST, BY_HAND[kind]), (FIRST_AND_LAST, BY_HAND[kind] / 2), (NOBODY, 0)):
        value = logit_pairing(SOURCE, TARGET, y, kind=kind)
        assert value.shape == () and value.item() == pytest.approx(truth)
    swapped = logit_pairing(TARGET[:1], SOURCE[:1], torch.tensor([0]))
    assert swapped.item() == pytest.approx(0.5 * math.log(4 / 3)), "the source is the first"
    with pytest.raises(ArgumentError, match="`kind`: expected 'kl' or 'mse' or 'cosine', got 'l2'"):
        logit_pairing(SOURCE, TARGET, FIRST, kind="l2")


def test_gradients_by_hand() -> None:
    """d KL(p || r) / d z_r = r - p, and d / d z_p = p (ln(p / r) - KL), on one of two samples."""
    source, target = leaves(SOURCE, TARGET)
    logit_pairing(source, target, FIRST_AND_LAST).backward()
    assert source.grad is not None and target.grad is not None
    assert target.grad[0].tolist() == pytest.approx([-1 / 8, 1 / 8])
    first = 0.75 * (math.log(1.5) - BY_HAND["kl"]) / 2
    assert source.grad[0].tolist() == pytest.approx([first, -first])
    assert source.grad[1].tolist() == target.grad[1].tolist() == [0.0, 0.0]


@kinds
def test_gradients_equal_finite_differences(kind: str) -> None:
    draws = torch.Generator().manual_seed(0)
    pair = [torch.randn(6, 4, dtype=torch.float64, generator=draws) for _ in range(2)]
    y = pair[0].argmax(1)
    y[::3] = (y[::3] + 1) % 4

    def value(source: Tensor, target: Tensor) -> Tensor:
        return logit_pairing(source, target, y, kind=kind)

    assert torch.autograd.gradcheck(value, leaves(*pair))


@kinds
def test_detached_the_source_has_no_gradient_and_the_target_the_same(kind: str) -> None:
    source, target = leaves(SOURCE, TARGET)
    logit_pairing(source, target, FIRST_AND_LAST, kind=kind, detach_source=True).backward()
    own, other = leaves(SOURCE, TARGET)
    logit_pairing(own, other, FIRST_AND_LAST, kind=kind).backward()
    assert source.grad is None and own.grad is not None and own.grad.abs().sum() > 0
    assert target.grad is not None and other.grad is not None
    assert torch.equal(target.grad, other.grad)
    nobody = leaves(SOURCE, TARGET)
    logit_pairing(*nobody, NOBODY, kind=kind).backward()
    assert all(z.grad is not None and not z.grad.any() for z in nobody)


@kinds
@pytest.mark.parametrize("bad", [-torch.inf, torch.nan])
def test_what_the_others_hold_changes_nothing(kind: str, bad: float) -> None:
    """The second sample is wrong, or cannot be right."""
    source, target = leaves(SOURCE, TARGET)
    with torch.no_grad():
        source[1, 1] = abs(bad)
        target[1] = bad
    values: list[Tensor] = []
    assert waits(lambda: values.append(logit_pairing(source, target, FIRST, kind=kind))) == []
    values[0].backward()
    assert values[0].item() == pytest.approx(BY_HAND[kind])
    for logits in (source, target):
        assert logits.grad is not None and logits.grad.isfinite().all()
        assert logits.grad[1].tolist() == [0.0, 0.0] and logits.grad[0].abs().sum() > 0


@kinds
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_raised_first(kind: str, dtype: torch.dtype) -> None:
    draws = torch.Generator().manual_seed(1)
    source, target = ((6 * torch.randn(9, 5, generator=draws)).to(dtype) for _ in range(2))
    y = source.argmax(1)
    value = logit_pairing(source, target, y, kind=kind)
    truth = logit_pairing(source.double(), target.double(), y, kind=kind)
    assert value.dtype == torch.float32 and value.item() == pytest.approx(truth.item(), rel=1e-5)
