"""The specification of the L2 ops, and why their results lie in the ball.

One sample: d = x_adv - x, a step moves by beta * g, and the new point is x_adv + beta * g where
that stays in the ball, else x + alpha * d + beta * g with a smaller beta. `reach` bounds its
distance from x from above: the length that <d, d>, <d, g> and <g, g> give in fp64, plus what the
sums (2^-33 of the longest way possible, squared) and the arithmetic of the elements (a few
roundings each) may be wrong by. So cancellation between d and g costs length, never the guarantee,
and alpha = eps / reach is small enough. Rounding to the storage dtype comes last. Where the sample
stays inside the ball however its elements are rounded (`slack`), each goes to the nearest number;
otherwise no element ends farther from x than its exact value. Clamping to a box that holds x brings
no element farther from x.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from roli_fast.ops.reference.rounding import (
    box_limits,
    clamp,
    compute_dtype,
    neighbour,
    per_sample,
    sum_error,
)

SUM_ERROR = 2.0**-33
"""Relative error of a sum of up to 2^31 products in fp64, in any order."""

SMALLEST = 2.0**-100
"""A smaller radius counts as 0: fp32 would underflow."""

LONGEST = 2.0**100
"""A longer step counts as this long: fp32 would overflow."""


class Limits(NamedTuple):
    """Where a sample may go; tensors broadcast over (B, ...)."""

    eps: Tensor  # fp64
    slack: float
    low: float
    high: float


class Scale(NamedTuple):
    """How a sample moves; each broadcasts over (B, ...)."""

    alpha: Tensor
    power: Tensor
    beta: Tensor
    inside: Tensor
    toward: Tensor


@lru_cache(maxsize=256)
def rounding_slack(per_sample: int, low: float, high: float, dtype: torch.dtype) -> float:
    """How far a point may move when `per_sample` values within [low, high] are rounded."""
    mantissa, exponent = math.frexp(max(abs(low), abs(high)))
    info = torch.finfo(dtype)
    spacing = math.ldexp(info.eps, exponent - (2 if mantissa == 0.5 else 1))
    smallest = info.smallest_normal * info.eps
    return 1.01 * math.sqrt(per_sample) * max(spacing, smallest) / 2


def limits_of(x: Tensor, eps: float | Tensor, bounds: tuple[float, float]) -> Limits:
    """The limits for images like `x`."""
    low, high = box_limits(*bounds, x.dtype)
    slack = rounding_slack(x[:1].numel(), low, high, x.dtype)
    return Limits(per_sample(eps, x).double(), slack, low, high)


def l2_project(
    x_adv: Tensor, x: Tensor, *, eps: float | Tensor, bounds: tuple[float, float] = (0.0, 1.0)
) -> Tensor:
    """What `ops.l2_project_` writes into `x_adv`, as a new tensor. See there."""
    return pulled(x_adv.to(compute_dtype(x.dtype)), x, limits_of(x, eps, bounds))


def l2_step(  # noqa: PLR0913 - the op's own arguments
    x_adv: Tensor,
    grad: Tensor,
    x: Tensor,
    *,
    eps: float | Tensor,
    step_size: float | Tensor,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """What `ops.l2_step_` writes into `x_adv`, as a new tensor. See there."""
    limits = limits_of(x, eps, bounds)
    base, distance, toward = stepped(x_adv, grad, x, step_size, limits)
    return place(base, distance, x, toward, limits)


def stepped(
    x_adv: Tensor, grad: Tensor, x: Tensor, step_size: float | Tensor, limits: Limits
) -> tuple[Tensor, Tensor, Tensor]:
    """Two summands of the new point, in the compute dtype, and whether to round toward `x`."""
    wide, origin = (value.to(compute_dtype(x.dtype)) for value in (x_adv, x))
    slope = torch.where(torch.isfinite(grad), grad, 0.0).to(wide.dtype)
    scale = _step_scale(wide, slope, origin, per_sample(step_size, x).double(), limits)
    stride = scale.beta * (scale.power * slope)
    distance = scale.alpha * (wide - origin) + stride
    base = torch.where(scale.inside, wide, origin)
    return base, torch.where(scale.inside, stride, distance), scale.toward


def pulled(point: Tensor, x: Tensor, limits: Limits) -> Tensor:
    """`point`, in the compute dtype, projected and rounded."""
    origin = x.to(point.dtype)
    squared = _dot(point, origin)
    scale = _projection(squared, limits, point.dtype)
    distance = torch.where(scale.inside, 0.0, scale.alpha * (point - origin))
    return place(torch.where(scale.inside, point, origin), distance, x, scale.toward, limits)


def place(a: Tensor, b: Tensor, x: Tensor, toward: Tensor, limits: Limits) -> Tensor:
    """a + b in the dtype of `x`, in the box: the nearest number or, if `toward`, none farther."""
    total = a + b
    nearest = total.to(x.dtype)
    excess = (nearest.to(total.dtype) - total) - sum_error(a, b, total)
    above, below = nearest > x, nearest < x
    beyond = (above & (excess > 0)) | (below & (excess < 0))
    placed = torch.where(toward & beyond, neighbour(nearest, down=above), nearest)
    return clamp(placed, limits.low, limits.high) + 0.0


def _dot(point: Tensor, origin: Tensor) -> Tensor:
    """<point - origin, point - origin> of each sample, in fp64, shaped (B, 1, ...)."""
    return _total((point.double() - origin.double()).square())


def _total(products: Tensor) -> Tensor:
    total = products.reshape(products.shape[0], -1).sum(1)
    return total.reshape(-1, *[1] * (products.ndim - 1))


def _step_scale(x_adv: Tensor, grad: Tensor, x: Tensor, step_size: Tensor, limits: Limits) -> Scale:
    step_size = step_size.clamp(max=LONGEST)
    d, g = x_adv.double() - x.double(), grad.double()
    dd, dg, gg = _total(d.square()), _total(d * g), _total(g.square())
    length = gg.sqrt()
    rate = torch.where(gg > 0, step_size / length, 0.0)
    farthest = dd.sqrt() + step_size
    squared = (dd + (2 * rate) * dg) + step_size * step_size
    squared = torch.where(squared < 0, 0.0, squared)
    reach = (squared + SUM_ERROR * (farthest * farthest)).sqrt()
    reach = reach + _element_error(x_adv.dtype) * farthest
    inside = (reach <= limits.eps) & (limits.eps >= SMALLEST)
    scale = _shrink(reach, inside, limits, x_adv.dtype)
    power = inverse_power(length)
    ratio = torch.where(limits.eps < SMALLEST, 0.0, limits.eps / reach)
    beta = rate / power
    beta = torch.where(inside, beta, ratio * beta)
    moved = scale._replace(power=power.to(x_adv.dtype), beta=beta.to(x_adv.dtype))
    still = _projection(dd, limits, x_adv.dtype)
    pairs = zip(still, moved, strict=True)
    return Scale(*(torch.where(rate == 0, one, other) for one, other in pairs))


def _projection(dd: Tensor, limits: Limits, dtype: torch.dtype) -> Scale:
    """Without a step. Compared as it is: a sample inside the ball stays what it is."""
    reach = (dd + SUM_ERROR * dd).sqrt() + _element_error(dtype) * dd.sqrt()
    inside = (dd <= limits.eps * limits.eps) & (limits.eps >= SMALLEST)
    return _shrink(reach, inside, limits, dtype)


def _shrink(reach: Tensor, inside: Tensor, limits: Limits, dtype: torch.dtype) -> Scale:
    """A sample whose distance will be at most `reach` unless it is shrunk."""
    ratio = torch.where(limits.eps < SMALLEST, 0.0, limits.eps / reach)
    ratio = torch.where(ratio < torch.finfo(dtype).tiny, 0.0, ratio)  # subnormal: wrong by too much
    alpha = torch.where(reach < math.inf, ratio, math.nan).to(dtype)
    toward = ~(inside & (reach + limits.slack <= limits.eps))
    return Scale(alpha, torch.ones_like(alpha), torch.zeros_like(alpha), inside, toward)


def _element_error(dtype: torch.dtype) -> float:
    """Bounds the roundings from d and g to a distance, relative to the longest way possible."""
    return 4 * torch.finfo(dtype).eps


def inverse_power(length: Tensor) -> Tensor:
    """2^-e for a length in [2^e, 2^(e + 1)), as far as fp32 goes."""
    exponent = 1 - torch.frexp(length).exponent
    return torch.ldexp(torch.ones_like(length), exponent.clamp(-126, 127))
