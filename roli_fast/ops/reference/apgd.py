"""The specification of APGD's momentum steps."""

import torch
from torch import Tensor

from roli_fast.ops.reference.l2 import limits_of, pulled, stepped
from roli_fast.ops.reference.linf import linf_ball, signed_step
from roli_fast.ops.reference.rounding import box_limits, clamp, compute_dtype, per_sample


def apgd_linf_step(  # noqa: PLR0913 - the op's own arguments
    x_adv: Tensor,
    x_prev: Tensor,
    grad: Tensor,
    x: Tensor,
    *,
    eps: float | Tensor,
    step_size: float | Tensor,
    momentum: float | Tensor,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """What `ops.apgd_linf_step_` writes into `x_prev`, as a new tensor. See there."""
    wide = x_adv.to(compute_dtype(x.dtype))
    ball_low, ball_high = linf_ball(x, eps)
    box_low, box_high = box_limits(*bounds, x.dtype)
    origin, radius = x.to(wide.dtype), per_sample(eps, x)
    u = clamp(wide + signed_step(grad, step_size), origin - radius, origin + radius)
    point = _mixed(wide, x_prev, clamp(u, box_low, box_high), momentum).to(x.dtype)
    inside = clamp(clamp(point, ball_low, ball_high), box_low, box_high)
    return torch.where(torch.isnan(ball_low), ball_low, inside) + 0.0


def apgd_l2_step(  # noqa: PLR0913 - the op's own arguments
    x_adv: Tensor,
    x_prev: Tensor,
    grad: Tensor,
    x: Tensor,
    *,
    eps: float | Tensor,
    step_size: float | Tensor,
    momentum: float | Tensor,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """What `ops.apgd_l2_step_` writes into `x_prev`, as a new tensor. See there."""
    limits = limits_of(x, eps, bounds)
    base, distance, _ = stepped(x_adv, grad, x, step_size, limits)
    u = clamp(base + distance, limits.low, limits.high)
    point = _mixed(x_adv.to(u.dtype), x_prev, u, momentum)
    # a number, also where iterates far apart overflow
    return pulled(clamp(point, -(2.0**120), 2.0**120), x, limits)


def _mixed(x_adv: Tensor, x_prev: Tensor, u: Tensor, momentum: float | Tensor) -> Tensor:
    """The point before the last projection. With momentum 1 `x_prev` is not looked at."""
    a = per_sample(momentum, x_adv)
    mixed = (x_adv + a * (u - x_adv)) + (1 - a) * (x_adv - x_prev.to(x_adv.dtype))
    return torch.where(a == 1, u, mixed)
