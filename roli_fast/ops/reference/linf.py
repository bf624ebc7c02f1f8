"""The specification of the Linf ops."""

import torch
from torch import Tensor

from roli_fast.ops.reference.rounding import box_limits, per_sample, round_up, sum_error


def linf_step(  # noqa: PLR0913 - the op's own arguments
    x_adv: Tensor,
    grad: Tensor,
    x: Tensor,
    *,
    eps: float | Tensor,
    step_size: float | Tensor,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """What `ops.linf_step_` writes into `x_adv`, as a new tensor. See there."""
    step = per_sample(step_size, x)
    moves = (grad != 0) & torch.isfinite(grad)
    signed = torch.where(moves, torch.where(grad > 0, step, -step), torch.zeros_like(step))
    moved = (x_adv.to(step.dtype) + signed).to(x.dtype)
    return clamped(moved, x, eps, bounds)


def linf_ball(x: Tensor, eps: float | Tensor) -> tuple[Tensor, Tensor]:
    """The smallest and the largest value of `x`'s dtype within `eps` of `x`, exactly."""
    return ball(x, per_sample(eps, x))


def ball(x: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """The same for radii in the compute dtype that broadcast with `x`."""
    wide = x.to(radius.dtype)
    low, high = wide - radius, wide + radius
    low_error, high_error = sum_error(wide, -radius, low), sum_error(wide, radius, high)
    return round_up(low, low_error, x.dtype), -round_up(-high, -high_error, x.dtype)


def clamped(value: Tensor, x: Tensor, eps: float | Tensor, bounds: tuple[float, float]) -> Tensor:
    """`value` moved into the ball, then into the box; NaN where `x` or `eps` is NaN."""
    ball_low, ball_high = linf_ball(x, eps)
    inside = torch.where(value < ball_low, ball_low, value)
    inside = torch.where(inside > ball_high, ball_high, inside)
    inside = torch.where(torch.isnan(ball_low), ball_low, inside)
    low, high = box_limits(*bounds, x.dtype)
    inside = torch.where(inside < low, low, inside)
    return torch.where(inside > high, high, inside) + 0.0
