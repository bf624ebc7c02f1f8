"""The l2 norm by hand."""

import torch

from roli_fast.norms import NORMS

L2 = NORMS["l2"]


def test_distance_is_the_euclidean_length() -> None:
    x = torch.tensor([[[0.5, 0.5], [0.5, 0.5]], [[0.0, 1.0], [0.25, 0.0]]])
    x_adv = torch.tensor([[[0.875, 0.5], [0.0, 0.5]], [[0.0, 1.0], [0.25, 0.0]]])
    assert L2.distance(x_adv, x).tolist() == [0.625, 0.0]


def test_a_step_follows_the_gradient_then_ball_then_box() -> None:
    x = torch.tensor([[0.5, 0.5], [0.5, 0.5], [1.0, 0.5]])
    x_adv, grad = x.clone(), torch.tensor([[3.0, 4.0], [-6.0, 8.0], [0.0, 0.0]])
    x_adv[2] = torch.tensor([0.75, 0.5])
    L2.step_(x_adv, grad, x, eps=0.25, step_size=0.125, bounds=(0.0, 1.0))
    expected = torch.tensor([[0.575, 0.6], [0.425, 0.6], [0.75, 0.5]])
    assert torch.allclose(x_adv, expected, rtol=1e-6)
    L2.step_(x_adv, grad, x, eps=0.25, step_size=1.0, bounds=(0.0, 0.625))
    expected = torch.tensor([[0.625, 0.625], [0.35, 0.625], [0.625, 0.5]])
    assert torch.allclose(x_adv, expected, rtol=1e-6)


def test_the_start_lies_in_the_ball() -> None:
    """In many dimensions most of a ball lies near its surface: E[(r / eps)^d] = 1/2."""
    x = torch.full((4000, 20), 0.5)
    generator = torch.Generator().manual_seed(0)
    start = L2.random_start(x, eps=0.25, bounds=(0.0, 1.0), generator=generator)
    share = (L2.distance(start, x) / 0.25) ** 20
    assert share.max() <= 1 and abs(share.mean().item() - 0.5) < 5 * (1 / 12 / 4000) ** 0.5
