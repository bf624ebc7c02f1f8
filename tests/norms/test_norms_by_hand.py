"""Each norm's distance, step, start and dual by hand."""

import math

import pytest
import torch
from tiny_models import FixedLogits

from roli_fast.attacks import PGD
from roli_fast.errors import ArgumentError
from roli_fast.norms import NORMS
from roli_fast.norms.l1 import L1

BOX = (0.0, 1.0)
LINF, L1_NORM = NORMS["linf"], NORMS["l1"]


@pytest.mark.parametrize(
    ("norm", "distance", "dual", "largest"),
    [("linf", 0.375, 7.0, 1.0), ("l2", 0.625, 5.0, 2.0), ("l1", 0.875, 4.0, 4.0)],
)
def test_measures(norm: str, distance: float, dual: float, largest: float) -> None:
    x = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.0, 1.0, 0.25, 0.0]])
    x_adv = torch.tensor([[0.875, 0.5, 0.0, 0.5], [0.0, 1.0, 0.25, 0.0]])
    if norm != "l2":
        x_adv[0, 2] = 0.5 if norm == "linf" else 0.0
    assert NORMS[norm].distance(x_adv, x).tolist() == [distance, 0.0]
    assert NORMS[norm].dual(torch.tensor([[3.0, -4.0, 0.0, 0.0]])).item() == dual
    assert NORMS[norm].largest(4) == largest
    assert NORMS[norm].largest(None) == (1.0 if norm == "linf" else math.inf)


def test_linf_distance_of_half_precision_is_exact() -> None:
    """In bf16 itself the difference 1 - 1/512 would round to 1."""
    x = torch.tensor([[2.0**-9]], dtype=torch.bfloat16)
    assert LINF.distance(torch.ones_like(x), x).item() == 1 - 2.0**-9


def test_an_l1_step_moves_the_largest_entries() -> None:
    x = torch.full((1, 40), 0.5)
    grad = torch.linspace(-1.0, 0.9, 40)[None]
    moved = L1_NORM.step_(x.clone(), grad, x, eps=1.0, step_size=0.25, bounds=BOX)
    assert (moved - x)[0, :3].tolist() == [-0.125, -0.125, 0.0] and moved[0, 3:].eq(0.5).all()
    dense = L1_NORM.with_density(1.0)
    moved = dense.step_(x.clone(), grad, x, eps=1.0, step_size=0.25, bounds=BOX)
    assert (moved != x).sum() == 40 and LINF.with_density(1.0) is LINF


@pytest.mark.parametrize("density", [-0.1, 1.1, float("nan")])
def test_wrong_density(density: float) -> None:
    with pytest.raises(ArgumentError, match="`density`: expected a number in"):
        L1(density=density)


def test_pgd_in_l1_finds_the_best_image_of_a_linear_model() -> None:
    """With logits (w x, 0) and label 0, all of eps goes where w is largest and there is room."""
    weight = torch.zeros(2, 50)
    weight[0] = torch.linspace(1.0, 2.0, 50) / 50
    x = torch.full((1, 50), 0.5)
    attack = PGD(norm="l1", eps=1.25, step_size=0.25, steps=40, random_start=False)
    x_adv = attack(FixedLogits(weight), x, torch.tensor([0]))
    best = torch.full((1, 50), 0.5)
    best[0, -2:] = 0.0
    best[0, -3] = 0.25
    gain = ((x - x_adv) @ weight[0]).item() / ((x - best) @ weight[0]).item()
    assert 0.98 < gain <= 1.0 + 1e-6
    assert L1_NORM.distance(x_adv, x) <= 1.25
