"""The specification of every fused op, in plain PyTorch, out of place, for any float dtype.

Arithmetic: read, compute in fp32 (fp64 for fp64 tensors), round once to the storage dtype, then
clamp. `eps` and `step_size` mean their value in the compute dtype. The limits of the ball are
rounded *inward* in the storage dtype: plain rounding of `x - eps` leaves the ball in 27 % of fp16,
5 % of bf16 and 9 % of fp32 pixels. A result of zero is always +0.
"""

from functools import lru_cache

import torch
from torch import Generator, Tensor

from roli_fast.ops import checks

_BITS = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
}


def compute_dtype(storage: torch.dtype) -> torch.dtype:
    """The dtype in which an op on `storage` tensors computes."""
    return torch.float64 if storage == torch.float64 else torch.float32


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
    step = _per_sample(step_size, x)
    moves = (grad != 0) & torch.isfinite(grad)
    signed = torch.where(moves, torch.where(grad > 0, step, -step), torch.zeros_like(step))
    moved = (x_adv.to(step.dtype) + signed).to(x.dtype)
    return _clamped(moved, x, eps, bounds)


def linf_random_start(
    x: Tensor,
    *,
    eps: float | Tensor,
    bounds: tuple[float, float] = (0.0, 1.0),
    generator: Generator | None = None,
) -> Tensor:
    """What `ops.linf_random_start` returns. See there."""
    radius = _per_sample(eps, x)
    uniform = torch.rand(x.shape, generator=generator, dtype=radius.dtype, device=x.device)
    drawn = (x.to(radius.dtype) + radius * (2 * uniform - 1)).to(x.dtype)
    return _clamped(drawn, x, eps, bounds)


def linf_ball(x: Tensor, eps: float | Tensor) -> tuple[Tensor, Tensor]:
    """The smallest and the largest value of `x`'s dtype within `eps` of `x`, exactly."""
    radius = _per_sample(eps, x)
    wide = x.to(radius.dtype)
    low, high = wide - radius, wide + radius
    low_error, high_error = _sum_error(wide, -radius, low), _sum_error(wide, radius, high)
    return _round_up(low, low_error, x.dtype), -_round_up(-high, -high_error, x.dtype)


@lru_cache(maxsize=256)
def box_limits(low: float, high: float, dtype: torch.dtype) -> tuple[float, float]:
    """The smallest and the largest value of `dtype` within [low, high]."""
    checks.box(low, high)
    ends = torch.tensor([low, -high], dtype=torch.float64)
    inner_low, inner_high = _round_up(ends, torch.zeros_like(ends), dtype).tolist()
    checks.box_holds_a_value(low, high, dtype, inner_low <= -inner_high)
    return inner_low, -inner_high


def _clamped(value: Tensor, x: Tensor, eps: float | Tensor, bounds: tuple[float, float]) -> Tensor:
    """`value` moved into the ball, then into the box; NaN where `x` or `eps` is NaN."""
    ball_low, ball_high = linf_ball(x, eps)
    inside = torch.where(value < ball_low, ball_low, value)
    inside = torch.where(inside > ball_high, ball_high, inside)
    inside = torch.where(torch.isnan(ball_low), ball_low, inside)
    low, high = box_limits(*bounds, x.dtype)
    inside = torch.where(inside < low, low, inside)
    return torch.where(inside > high, high, inside) + 0.0


def _per_sample(value: float | Tensor, x: Tensor) -> Tensor:
    """`value` in the compute dtype, shaped to broadcast over (B, ...)."""
    dtype = compute_dtype(x.dtype)
    if isinstance(value, Tensor):
        return value.to(dtype).reshape(-1, *[1] * (x.ndim - 1))
    return torch.full((), value, dtype=dtype, device=x.device)


def _sum_error(a: Tensor, b: Tensor, total: Tensor) -> Tensor:
    """The exact error of a rounded sum: a + b == total + error (Knuth's TwoSum)."""
    b_seen = total - a
    return (a - (total - b_seen)) + (b - b_seen)


def _round_up(value: Tensor, error: Tensor, dtype: torch.dtype) -> Tensor:
    """The smallest number of `dtype` that is >= value + error, `error` below half an ulp."""
    rounded = value.to(dtype)
    back = rounded.to(value.dtype)
    bits = rounded.view(_BITS[dtype])
    next_up = (bits + torch.where(bits < 0, -1, 1).to(bits.dtype)).view(dtype)
    return torch.where((back < value) | ((back == value) & (error > 0)), next_up, rounded)
