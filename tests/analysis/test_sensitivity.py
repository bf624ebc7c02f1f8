"""How fast margins move with the images."""

import math
from typing import Any

import pytest
import torch
from text_encoder import TextEncoder, token_batches
from tiny_models import SIZES, SMALL, FixedLogits, Mixed, images, tiny, untouched
from torch.autograd.functional import jacobian

from roli_fast import PGD
from roli_fast.analysis import margin_sensitivity
from roli_fast.data import Batch
from roli_fast.errors import ArgumentError, ArgumentTypeError

WEIGHT = torch.tensor([[3.0, 0.0], [0.0, 4.0], [-1.0, -1.0]])
"""Logits W x, so that the margin's gradient is a difference of rows."""


def one_batch(x: torch.Tensor, y: torch.Tensor) -> list[Batch]:
    return [Batch(x, y, torch.arange(len(y)))]


@pytest.mark.parametrize(("norm", "expected"), [("linf", 7.0), ("l2", 5.0), ("l1", 4.0)])
def test_a_linear_model_by_hand(norm: str, expected: float) -> None:
    x = torch.tensor([[1.0, 0.5], [0.5, 1.0]])  # logits 3, 2, -1.5 and 1.5, 4, -1.5
    found = margin_sensitivity(FixedLogits(WEIGHT), one_batch(x, torch.tensor([0, 0])), norm)
    assert found.samples.tolist() == pytest.approx([expected, expected])  # of (3, -4)
    assert found.margins.tolist() == pytest.approx([1, -2.5])
    assert found.mean == pytest.approx(expected)
    assert found.radii.tolist() == pytest.approx([1 / expected, -2.5 / expected])


def test_the_runner_up_is_the_likeliest_other_class() -> None:
    x, y = torch.tensor([[1.0, 0.5], [-1.0, 0.0]]), torch.tensor([2, 0])
    found = margin_sensitivity(FixedLogits(WEIGHT), one_batch(x, y), "l2")
    first, second = math.hypot(4, 1), math.hypot(4, 1)  # rows 2 - 0, and 0 - 2: logits -3, 0, 1
    assert found.samples.tolist() == pytest.approx([first, second])


@pytest.mark.parametrize("name", SMALL)
def test_it_is_the_head_through_the_features_jacobian(name: str) -> None:
    model, side = tiny(name).double().train(), SIZES[name]
    x, y = images(3, 3, side, side).double(), torch.arange(3)
    with untouched(model):
        found = margin_sensitivity(model, one_batch(x, y), "l2")
    model.eval()
    each: list[Any] = [jacobian(model.features, one[None]) for one in x]
    slopes = torch.stack([one[0, :, 0] for one in each])
    logits = model(x)
    others = logits.scatter(1, y[:, None], -torch.inf).argmax(1)
    rows = model.head.weight[y] - model.head.weight[others]
    expected = torch.einsum("bd,bd...->b...", rows, slopes).flatten(1).norm(dim=1)
    assert torch.allclose(found.samples, expected, rtol=1e-9)
    margins = logits.gather(1, y[:, None]) - logits.gather(1, others[:, None])
    assert torch.allclose(found.margins, margins[:, 0])


def test_an_attack_moves_margins_no_further_than_it_says() -> None:
    model, eps = tiny().double(), 1e-4
    x, y = images(6, 3, 8, 8).double() * 0.8 + 0.1, torch.arange(6) % 5
    found = margin_sensitivity(model, one_batch(x, y), "linf")
    attack = PGD(eps=eps, step_size=eps, steps=1, random_start=False, loss="margin")
    moved = margin_sensitivity(model, one_batch(attack(model, x, y), y), "linf")
    change = found.margins - moved.margins
    assert torch.allclose(change, eps * found.samples, rtol=0.02)


def test_wrong_calls() -> None:
    batches = one_batch(images(2, 3, 6, 6), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ArgumentError, match="expected one of: l1, l2, linf, got 'l3'"):
        margin_sensitivity(Mixed(), batches, "l3")
    with pytest.raises(ArgumentTypeError, match="floating-point tensor"):
        margin_sensitivity(TextEncoder(), token_batches(), "l2")
