"""The linf norm by hand."""

import torch

from roli_fast.norms import NORMS

LINF = NORMS["linf"]


def test_distance_is_the_largest_change() -> None:
    x = torch.tensor([[0.5, 0.5, 0.5], [0.0, 1.0, 0.25]])
    x_adv = torch.tensor([[0.75, 0.375, 0.5], [0.0, 1.0, 0.25]])
    assert LINF.distance(x_adv, x).tolist() == [0.25, 0.0]


def test_distance_of_half_precision_is_exact() -> None:
    """In bf16 itself the difference 1 - 1/512 would round to 1."""
    x = torch.tensor([[2.0**-9]], dtype=torch.bfloat16)
    assert LINF.distance(torch.ones_like(x), x).item() == 1 - 2.0**-9


def test_a_step_is_the_sign_then_ball_then_box() -> None:
    x = torch.tensor([[0.5, 0.5, 0.5, 0.0]])
    x_adv = torch.tensor([[0.5, 0.625, 0.375, 0.0]])
    grad = torch.tensor([[3.0, 1e-30, 7.0, -1.0]])
    LINF.step_(x_adv, grad, x, eps=0.125, step_size=0.0625, bounds=(0.0, 1.0))
    assert x_adv.tolist() == [[0.5625, 0.625, 0.4375, 0.0]]


def test_the_start_is_uniform_in_the_ball() -> None:
    """20,000 draws: mean 0 and variance eps^2 / 3 within five standard errors."""
    x, eps = torch.full((1, 20_000), 0.5), 0.25
    start = LINF.random_start(
        x, eps=eps, bounds=(0.0, 1.0), generator=torch.Generator().manual_seed(0)
    )
    delta = ((start - x) / eps).double()
    assert abs(delta.mean().item()) < 5 * (1 / 3 / 20_000) ** 0.5
    assert abs(delta.square().mean().item() - 1 / 3) < 5 * (4 / 45 / 20_000) ** 0.5
    assert delta.abs().max() > 0.999


def test_the_start_is_clipped_to_the_box() -> None:
    x = torch.tensor([[0.0, 1.0] * 500])
    start = LINF.random_start(
        x, eps=0.25, bounds=(0.0, 1.0), generator=torch.Generator().manual_seed(0)
    )
    stuck = (start == x).double().mean().item()
    assert 0.4 < stuck < 0.6 and start.min() == 0 and start.max() == 1
