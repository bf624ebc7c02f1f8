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
LINF, L2, L1_NORM = NORMS["linf"], NORMS["l2"], NORMS["l1"]


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


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


def test_a_linf_step_is_the_sign_then_ball_then_box() -> None:
    x = torch.tensor([[0.5, 0.5, 0.5, 0.0]])
    x_adv = torch.tensor([[0.5, 0.625, 0.375, 0.0]])
    grad = torch.tensor([[3.0, 1e-30, 7.0, -1.0]])
    LINF.step_(x_adv, grad, x, eps=0.125, step_size=0.0625, bounds=BOX)
    assert x_adv.tolist() == [[0.5625, 0.625, 0.4375, 0.0]]


def test_an_l2_step_follows_the_gradient_then_ball_then_box() -> None:
    x = torch.tensor([[0.5, 0.5], [0.5, 0.5], [1.0, 0.5]])
    x_adv, grad = x.clone(), torch.tensor([[3.0, 4.0], [-6.0, 8.0], [0.0, 0.0]])
    x_adv[2] = torch.tensor([0.75, 0.5])
    L2.step_(x_adv, grad, x, eps=0.25, step_size=0.125, bounds=BOX)
    expected = torch.tensor([[0.575, 0.6], [0.425, 0.6], [0.75, 0.5]])
    assert torch.allclose(x_adv, expected, rtol=1e-6)
    L2.step_(x_adv, grad, x, eps=0.25, step_size=1.0, bounds=(0.0, 0.625))
    expected = torch.tensor([[0.625, 0.625], [0.35, 0.625], [0.625, 0.5]])
    assert torch.allclose(x_adv, expected, rtol=1e-6)


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


def test_the_linf_start_is_uniform_in_the_ball_and_clipped_to_the_box() -> None:
    """20,000 draws: mean 0 and variance eps^2 / 3 within five standard errors."""
    x, eps = torch.full((1, 20_000), 0.5), 0.25
    start = LINF.random_start(x, eps=eps, bounds=BOX, generator=generator())
    delta = ((start - x) / eps).double()
    assert abs(delta.mean().item()) < 5 * (1 / 3 / 20_000) ** 0.5
    assert abs(delta.square().mean().item() - 1 / 3) < 5 * (4 / 45 / 20_000) ** 0.5
    assert delta.abs().max() > 0.999
    x = torch.tensor([[0.0, 1.0] * 500])
    start = LINF.random_start(x, eps=eps, bounds=BOX, generator=generator())
    stuck = (start == x).double().mean().item()
    assert 0.4 < stuck < 0.6 and start.min() == 0 and start.max() == 1


def test_the_l2_start_lies_in_the_ball() -> None:
    """In many dimensions most of a ball lies near its surface: E[(r / eps)^d] = 1/2."""
    x = torch.full((4000, 20), 0.5)
    start = L2.random_start(x, eps=0.25, bounds=BOX, generator=generator())
    share = (L2.distance(start, x) / 0.25) ** 20
    assert share.max() <= 1 and abs(share.mean().item() - 0.5) < 5 * (1 / 12 / 4000) ** 0.5
