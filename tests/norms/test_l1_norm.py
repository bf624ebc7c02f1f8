"""The l1 norm by hand."""

import pytest
import torch

from roli_fast.attacks import PGD
from roli_fast.errors import ArgumentError
from roli_fast.norms import NORMS
from roli_fast.norms.l1 import L1

BOX = (0.0, 1.0)


def test_distance_is_the_sum_of_changes() -> None:
    x = torch.tensor([[0.5, 0.5, 0.5], [0.0, 1.0, 0.25]])
    x_adv = torch.tensor([[0.75, 0.375, 0.5], [0.0, 1.0, 0.25]])
    assert NORMS["l1"].distance(x_adv, x).tolist() == [0.375, 0.0]


def test_a_step_moves_the_largest_entries() -> None:
    x = torch.full((1, 40), 0.5)
    grad = torch.linspace(-1.0, 0.9, 40)[None]
    moved = NORMS["l1"].step_(x.clone(), grad, x, eps=1.0, step_size=0.25, bounds=BOX)
    assert (moved - x)[0, :3].tolist() == [-0.125, -0.125, 0.0] and moved[0, 3:].eq(0.5).all()
    dense = L1(density=1.0).step_(x.clone(), grad, x, eps=1.0, step_size=0.25, bounds=BOX)
    assert (dense != x).sum() == 40


@pytest.mark.parametrize("density", [-0.1, 1.1, float("nan")])
def test_wrong_density(density: float) -> None:
    with pytest.raises(ArgumentError, match="`density`: expected a number in"):
        L1(density=density)


def test_pgd_finds_the_best_image_of_a_linear_model() -> None:
    """With logits (w x, 0) and label 0, all of eps goes where w is largest and there is room."""
    weight = torch.zeros(2, 50)
    weight[0] = torch.linspace(1.0, 2.0, 50) / 50
    x = torch.full((1, 50), 0.5)
    attack = PGD(norm="l1", eps=1.25, step_size=0.25, steps=40, random_start=False)

    class Fixed(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ weight.T

    x_adv = attack(Fixed(), x, torch.tensor([0]))
    best = torch.full((1, 50), 0.5)
    best[0, -2:] = 0.0
    best[0, -3] = 0.25
    gain = ((x - x_adv) @ weight[0]).item() / ((x - best) @ weight[0]).item()
    assert 0.98 < gain <= 1.0 + 1e-6
    assert NORMS["l1"].distance(x_adv, x) <= 1.25
