"""Ops in the Linf ball: PGD's step and APGD's."""

import torch
from torch import Tensor

from roli_fast.ops.fused import fused
from roli_fast.ops.rounding import (
    box_limits,
    clamp,
    compute_dtype,
    per_sample,
    round_up,
    sum_error,
)


@fused()
def linf_step_(
    x_adv: Tensor,
    grad: Tensor,
    x: Tensor,
    *,
    eps: float | Tensor,
    step_size: float | Tensor,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """One projected sign-gradient ascent step in the Linf ball, in place.

    x_adv <- clamp(clamp(x_adv + step_size * sign(grad), x - eps, x + eps), low, high): the PGD
    update of Madry et al. 2018 (arXiv:1706.06083, section 2.1), then the range of valid pixels.

    Computed in fp32 (fp64 for fp64 tensors) and rounded once. The limits of the ball are rounded
    inward, so that no result is outside, in any dtype, measured exactly; `eps` means its fp32
    value, and `bounds` the nearest numbers of the images' dtype. If ball and box do not meet, the
    box wins. A gradient entry that is 0, NaN or infinite moves nothing; a NaN in `x_adv`, `x` or
    `eps` gives NaN; a result of zero is +0.

    Contiguous and channels_last tensors (`x_adv` decides; the others are copied to its layout where
    they differ) are updated where they are. Any other strides cost one copy of `x_adv`.

    Args:
        x_adv: the images to move, shape (B, ...), fp32, bf16, fp16 or fp64 (fp64 without a kernel).
            Not checked against ball or box; written.
        grad: gradient of the loss by `x_adv`, same shape, dtype and device.
        x: the original images, same shape, dtype and device.
        eps: radius of the ball in the units of the images, 8/255 for pixels in [0, 1]: a number
            >= 0, or a tensor (B,), one radius a sample.
        step_size: length of the step, in the same units and forms.
        bounds: lowest and highest valid pixel value.

    Returns:
        `x_adv`.

    Raises:
        ArgumentTypeError: an argument has a wrong type, dtype or device.
        ArgumentError: a wrong shape or number; `grad`, `x`, `eps` or `step_size` shares memory with
            `x_adv`; grad mode is on and an argument requires grad (the step has no derivative).
    """
    signed = signed_step(grad, step_size)
    moved = (x_adv.to(signed.dtype) + signed).to(x.dtype)
    return clamped(moved, x, eps, bounds)


@fused(written="x_prev")
def apgd_linf_step_(
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
    """One step of APGD in the Linf ball: the new iterate takes the memory of the old one.

    With P the clamp to ball and box, u = P(x_adv + step_size * sign(grad)) and a = `momentum`,

        x_prev <- P(x_adv + a * (u - x_adv) + (1 - a) * (x_adv - x_prev))

    (Croce & Hein 2020, arXiv:2003.01690, Algorithm 1, line 7). `x_adv` is read only, so two buffers
    serve the whole attack without a copy:

        x_adv, x_prev = ops.apgd_linf_step_(x_adv, x_prev, grad, x, ...), x_adv

    With momentum 1, the first step, `x_prev` is not looked at and may be `torch.empty_like(x)`.

    Rounding, limits, special values of `grad` and layouts are those of `linf_step_` (here `x_prev`
    decides about the layout); u itself is not rounded to the dtype. A NaN in `x_adv` or, with
    momentum below 1, in `x_prev` gives NaN.

    Args:
        x_adv: the current iterate, as in `linf_step_`; read only.
        x_prev: the one before, same shape, dtype and device; written.
        grad: gradient of the loss by `x_adv`, same shape, dtype and device.
        x: the original images, same shape, dtype and device.
        eps: radius of the ball in the units of the images: a number >= 0, or a tensor (B,).
        step_size: length of the step, in the same units and forms.
        momentum: a in [0, 1], 0.75 in the paper and 1 for the first step: a number or a tensor
            (B,).
        bounds: lowest and highest valid pixel value.

    Returns:
        `x_prev`, which now holds the new iterate. Errors: see `linf_step_`.
    """
    wide, origin = (value.to(compute_dtype(x.dtype)) for value in (x_adv, x))
    radius, box = per_sample(eps, x), box_limits(*bounds, x.dtype)
    u = clamp(wide + signed_step(grad, step_size), origin - radius, origin + radius)
    point = momentum_point(wide, x_prev, clamp(u, *box), per_sample(momentum, x))
    return clamped(point.to(x.dtype), x, eps, bounds)


def signed_step(grad: Tensor, step_size: float | Tensor) -> Tensor:
    """`step_size` with the sign of `grad`, in the compute dtype; 0 where it is 0 or not finite."""
    step = per_sample(step_size, grad)
    moves = (grad != 0) & torch.isfinite(grad)
    return torch.where(moves, torch.where(grad > 0, step, -step), torch.zeros_like(step))


def ball(x: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest and the largest value of `x`'s dtype within `radius` of `x`, exactly.

    Radii are in the compute dtype, or fp64, and broadcast with `x`.
    """
    wide = x.to(radius.dtype)
    low, high = wide - radius, wide + radius
    low_error, high_error = sum_error(wide, -radius, low), sum_error(wide, radius, high)
    return round_up(low, low_error, x.dtype), -round_up(-high, -high_error, x.dtype)


def clamped(value: Tensor, x: Tensor, eps: float | Tensor, bounds: tuple[float, float]) -> Tensor:
    """`value` moved into the ball, then into the box; NaN where `x` or `eps` is NaN."""
    ball_low, ball_high = ball(x, per_sample(eps, x))
    inside = clamp(value, ball_low, ball_high)
    inside = torch.where(torch.isnan(ball_low), ball_low, inside)
    return clamp(inside, *box_limits(*bounds, x.dtype)) + 0.0


def momentum_point(x_adv: Tensor, x_prev: Tensor, u: Tensor, momentum: Tensor) -> Tensor:
    """The point before the last projection. With momentum 1 `x_prev` is not looked at."""
    back = x_adv - x_prev.to(x_adv.dtype)
    mixed = (x_adv + momentum * (u - x_adv)) + (1 - momentum) * back
    return torch.where(momentum == 1, u, mixed)
