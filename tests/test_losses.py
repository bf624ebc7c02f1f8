"""Losses against numbers worked by hand and fp64."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from roli_fast.losses import (
    at_least_float32,
    cross_entropy,
    dlr,
    dlr_targeted,
    kl,
    margin,
    trades,
)

L3 = math.log(3.0)
LOGITS = torch.tensor([[3.0, 1.0, 0.0, -1.0], [3.0, 1.0, 0.0, -1.0], [-1.0, 0.0, 3.0, 1.0]])
LABELS = torch.tensor([0, 1, 2])
PAIRS = torch.tensor([[0.0, 0.0], [L3, 0.0], [0.0, L3]])
ONE = torch.tensor([0])


@pytest.mark.parametrize(
    ("found", "truth"),
    [
        (
            cross_entropy(PAIRS, torch.tensor([1, 0, 0])),
            [math.log(2), math.log(4 / 3), math.log(4)],
        ),
        # p = (3/4, 1/4); of the target 0.8 is on the label and 0.2 spread over both
        (
            cross_entropy(PAIRS[1:2], ONE, label_smoothing=0.2),
            [0.9 * math.log(4 / 3) + 0.1 * math.log(4)],
        ),
        (margin(LOGITS, LABELS), [-2.0, 2.0, -2.0]),
        # (1 - 3) / (3 - 0), and (3 - 1) / (3 - 0) where the label is not the highest
        (dlr(LOGITS, LABELS), [-2 / 3, 2 / 3, -2 / 3]),
        # (0 - 3), (-1 - 1), (1 - 3), each over 3 - (0 - 1) / 2
        (dlr_targeted(LOGITS, LABELS, torch.tensor([2, 3, 3])), [-6 / 7, -4 / 7, -4 / 7]),
        (dlr(torch.zeros(1, 5), ONE), [0.0]),
        (dlr_targeted(torch.zeros(1, 5), ONE, ONE + 1), [0.0]),
        # from (1/2, 1/2) to (1/4, 3/4): (ln 2 + ln 2/3) / 2
        (kl(PAIRS[2:], PAIRS[:1]), [0.5 * math.log(4 / 3)]),
        (kl(PAIRS, PAIRS), [0.0] * 3),
        # CE ln 2 and 0 on the clean ones; the KL above and 0, each a mean over two
        (
            trades(
                torch.tensor([[0.0, 0.0], [200.0, 0.0]]),
                torch.tensor([[0.0, L3], [200.0, 0.0]]),
                torch.tensor([1, 0]),
                beta=6.0,
            ),
            0.5 * math.log(2) + 1.5 * math.log(4 / 3),
        ),
    ],
)
def test_by_hand(found: Tensor, truth: Any) -> None:
    assert found.tolist() == pytest.approx(truth, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_raised_first(dtype: torch.dtype) -> None:
    """In fp16 itself exp and the sum round: 1e-3 here; the error must be fp32's."""
    logits = torch.linspace(-8, 8, 40).view(4, 10).to(dtype)
    y = torch.tensor([9, 0, 4, 5])
    loss = cross_entropy(logits, y)
    truth = -logits.double().log_softmax(1).gather(1, y[:, None])[:, 0]
    assert loss.dtype == torch.float32
    assert torch.allclose(loss.double(), truth, rtol=1e-6, atol=1e-7)


def test_large_logits_stay_finite_and_wide_ones_keep_their_dtype() -> None:
    for dtype in (torch.float32, torch.float64):
        logits = torch.zeros(2, 3, dtype=dtype)
        assert at_least_float32(logits) is logits
    large = torch.tensor([[6e4, -6e4, 1.0, 2.0]], dtype=torch.float16)
    assert cross_entropy(large, ONE + 1).item() == pytest.approx(1.2e5, rel=1e-3)
    for loss in (margin, dlr):
        value = loss(large, ONE + 1)
        assert value.dtype == torch.float32 and value.isfinite().all() and value > 0


def test_dlr_does_not_change_with_scale_and_shift_and_the_margin_scales() -> None:
    logits = torch.randn(20, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y, target = torch.arange(20) % 7, torch.arange(3, 23) % 7
    moved = 1000 * logits + 17
    assert torch.allclose(dlr(moved, y), dlr(logits, y), rtol=1e-9)
    assert torch.allclose(dlr_targeted(moved, y, target), dlr_targeted(logits, y, target))
    assert torch.allclose(margin(moved, y), 1000 * margin(logits, y))
    wrong = logits.argmax(1) != y
    assert torch.equal(margin(logits, y) > 0, wrong) and torch.equal(dlr(logits, y) > 0, wrong)


Y = torch.arange(6) % 5


@pytest.mark.parametrize(
    "loss",
    [
        lambda z, _: margin(z, Y),
        lambda z, _: dlr(z, Y),
        lambda z, _: dlr_targeted(z, Y, (Y + 1) % 5),
        lambda z, other: kl(z, other),
        lambda z, other: trades(other, z, Y, beta=2.0),  # through both predictions
    ],
    ids=["margin", "dlr", "dlr targeted", "kl", "trades"],
)
def test_gradients_equal_finite_differences(loss: Any) -> None:
    draws = torch.Generator().manual_seed(2)
    pair = [torch.randn(6, 5, dtype=torch.float64, generator=draws) for _ in range(2)]
    assert torch.autograd.gradcheck(loss, [z.requires_grad_(True) for z in pair])
