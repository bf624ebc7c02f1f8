"""Losses against numbers worked by hand and fp64."""

import math

import pytest
import torch

from roli_fast.losses import (
    at_least_float32,
    cross_entropy,
    dlr,
    dlr_targeted,
    kl,
    margin,
    trades,
)


def test_cross_entropy_by_hand() -> None:
    logits = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0], [0.0, math.log(3.0)]])
    loss = cross_entropy(logits, torch.tensor([1, 0, 0]))
    assert loss.shape == (3,)
    truth = [math.log(2), math.log(4 / 3), math.log(4)]
    assert loss.tolist() == pytest.approx(truth, rel=1e-6)


def test_label_smoothing_by_hand() -> None:
    """(1 - s) of the target on the label and s spread over all: p = (3/4, 1/4), s = 0.2."""
    logits = torch.tensor([[math.log(3.0), 0.0]])
    loss = cross_entropy(logits, torch.tensor([0]), label_smoothing=0.2)
    assert loss.item() == pytest.approx(0.9 * math.log(4 / 3) + 0.1 * math.log(4), rel=1e-6)


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
    loss = cross_entropy(torch.tensor([[6e4, -6e4]], dtype=torch.float16), torch.tensor([1]))
    assert loss.item() == pytest.approx(1.2e5, rel=1e-3)


LOGITS = torch.tensor([[3.0, 1.0, 0.0, -1.0], [3.0, 1.0, 0.0, -1.0], [-1.0, 0.0, 3.0, 1.0]])
LABELS = torch.tensor([0, 1, 2])


def test_margin_by_hand() -> None:
    assert margin(LOGITS, LABELS).tolist() == [-2.0, 2.0, -2.0]


def test_dlr_by_hand() -> None:
    """(1 - 3) / (3 - 0), and (3 - 1) / (3 - 0) where the label is not the highest."""
    assert dlr(LOGITS, LABELS).tolist() == pytest.approx([-2 / 3, 2 / 3, -2 / 3])


def test_targeted_dlr_by_hand() -> None:
    """(0 - 3), (-1 - 1), (1 - 3), each over 3 - (0 - 1) / 2."""
    found = dlr_targeted(LOGITS, LABELS, torch.tensor([2, 3, 3]))
    assert found.tolist() == pytest.approx([-6 / 7, -4 / 7, -4 / 7])


def test_kl_by_hand() -> None:
    """From (1/2, 1/2) to (1/4, 3/4): (ln 2 + ln 2/3) / 2."""
    reference, logits = torch.zeros(1, 2), torch.tensor([[0.0, math.log(3.0)]])
    assert kl(logits, reference).tolist() == pytest.approx([0.5 * math.log(4 / 3)])
    assert kl(logits, logits).tolist() == pytest.approx([0.0], abs=1e-7)


def test_dlr_does_not_change_with_scale_and_shift_and_the_margin_scales() -> None:
    logits = torch.randn(20, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y, target = torch.arange(20) % 7, torch.arange(3, 23) % 7
    moved = 1000 * logits + 17
    assert torch.allclose(dlr(moved, y), dlr(logits, y), rtol=1e-9)
    assert torch.allclose(dlr_targeted(moved, y, target), dlr_targeted(logits, y, target))
    assert torch.allclose(margin(moved, y), 1000 * margin(logits, y))
    wrong = logits.argmax(1) != y
    assert torch.equal(margin(logits, y) > 0, wrong) and torch.equal(dlr(logits, y) > 0, wrong)


@pytest.mark.parametrize("loss", [margin, dlr, kl, "targeted"])
def test_gradients_equal_finite_differences(loss: object) -> None:
    logits = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    y = torch.arange(6) % 5
    other = logits.flip(0) if loss is kl else y

    def value(z: torch.Tensor) -> torch.Tensor:
        return dlr_targeted(z, y, (y + 1) % 5) if loss == "targeted" else loss(z, other)  # pyright: ignore

    assert torch.autograd.gradcheck(value, logits.requires_grad_(True))


@pytest.mark.parametrize("loss", [margin, dlr])
def test_half_precision_is_raised_in_every_loss(loss: object) -> None:
    logits = torch.tensor([[6e4, -6e4, 1.0, 2.0]], dtype=torch.float16)
    value = loss(logits, torch.tensor([1]))  # pyright: ignore
    assert value.dtype == torch.float32 and value.isfinite().all() and value > 0


def test_equal_logits_give_a_finite_dlr() -> None:
    y = torch.tensor([2, 0])
    assert dlr(torch.zeros(2, 5), y).tolist() == [0.0, 0.0]
    assert dlr_targeted(torch.zeros(2, 5), y, y + 1).tolist() == [0.0, 0.0]


def test_trades_by_hand() -> None:
    """CE ln 2 and 0 on the clean ones; the KL of the test above and 0, each a mean over two."""
    clean = torch.tensor([[0.0, 0.0], [200.0, 0.0]])
    moved = torch.tensor([[0.0, math.log(3.0)], [200.0, 0.0]])
    value = trades(clean, moved, torch.tensor([1, 0]), beta=6.0)
    assert value.item() == pytest.approx(0.5 * math.log(2) + 1.5 * math.log(4 / 3))


def test_the_gradient_of_trades_goes_through_both_predictions() -> None:
    draws = torch.Generator().manual_seed(3)
    pair = [torch.randn(4, 3, dtype=torch.float64, generator=draws) for _ in range(2)]
    y = torch.tensor([0, 1, 2, 0])

    def value(clean: torch.Tensor, moved: torch.Tensor) -> torch.Tensor:
        return trades(clean, moved, y, beta=2.0)

    assert torch.autograd.gradcheck(value, [z.requires_grad_(True) for z in pair])
