"""The specification of the Linf ops."""

import torch
from torch import Tensor

from roli_fast.ops.reference.rounding import box_limits, clamp, per_sample, round_up, sum_error


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
    signed = signed_step(grad, step_size)
    moved = (x_adv.to(signed.dtype) + signed).to(x.dtype)
    return clamped(moved, x, eps, bounds)


def signed_step(grad: Tensor, step_size: float | Tensor) -> Tensor:
    """`step_size` with the sign of `grad`, in the compute dtype; 0 where it is 0 or not finite."""
    step = per_sample(step_size, grad)
    moves = (grad != 0) & torch.isfinite(grad)
    return torch.where(moves, torch.where(grad > 0, step, -step), torch.zeros_like(step))


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
    inside = clamp(value, ball_low, ball_high)
    inside = torch.where(torch.isnan(ball_low), ball_low, inside)
    return clamp(inside, *box_limits(*bounds, x.dtype)) + 0.0
