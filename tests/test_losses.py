"""Losses against numbers worked by hand and fp64."""

import math

import pytest
import torch

from roli_fast.losses import at_least_float32, cross_entropy


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


def test_wide_logits_keep_their_dtype() -> None:
    for dtype in (torch.float32, torch.float64):
        logits = torch.zeros(2, 3, dtype=dtype)
        assert at_least_float32(logits) is logits


def test_large_logits_stay_finite() -> None:
    loss = cross_entropy(torch.tensor([[6e4, -6e4]], dtype=torch.float16), torch.tensor([1]))
    assert loss.item() == pytest.approx(1.2e5, rel=1e-3)
