"""Ops in the L2 ball: the projection, PGD's step and APGD's, and why results lie in the ball.

One sample: d = x_adv - x, a step moves by beta * g, and the new point is x_adv + beta * g where
that stays in the ball, else x + alpha * (d + beta * g). `reach` bounds its distance from x from
above: the length of d + beta * g, plus what a kernel's sums (2^-33 of the longest way possible,
squared) and the arithmetic of its elements (a few roundings each) may be wrong by. So alpha =
eps / reach is small enough. Rounding to the storage dtype comes last. Where the sample stays inside
the ball however its elements are rounded (`slack`), each goes to the nearest number; otherwise no
element ends farther from x than its exact value. Clamping to a box that holds x brings no element
farther from x. The references compute in fp64.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

from roli_fast.ops.fused import Bounds, fused
from roli_fast.ops.linf import momentum_point
from roli_fast.ops.rounding import (
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


@fused(sums=True)
def l2_project_(
    x_adv: Tensor,
    x: Tensor,
    *,
    eps: float | Tensor,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """Bring `x_adv` into the L2 ball around `x`, then into the box, in place.

    x_adv <- clamp(x + (x_adv - x) * min(1, eps / ||x_adv - x||_2), low, high): radial, then the
    clamp, which is what the field calls the projection (Madry et al. 2018, arXiv:1706.06083; Croce
    & Hein 2020, arXiv:2003.01690). It is not the nearest point of ball and box together; it lies in
    both, since clamping to a box that holds `x` never leads away from `x`.

    A sample inside the ball is only clamped. Any other ends inside it, measured exactly in any
    dtype: elements are rounded toward `x`, and the scale allows for the arithmetic's error, which
    costs 5e-7 of the radius at most (in fp64 2e-10). In bf16 and fp16 rounding toward `x` costs up
    to one spacing an element: keep images in fp32 where `eps` spreads to less than that.

    `eps` means its fp32 value (fp64 for fp64 tensors); below 2^-100 it counts as 0. Sums are fp64,
    in an order that depends on a sample's size and layout alone, so results do not depend on
    threads or on the batch. If `x` lies outside the box, the box wins. A NaN or an infinity in
    `x_adv` or `x`, or a NaN in `eps`, makes its whole sample NaN. A result of zero is +0.

    Arguments, layouts, result and errors: see `linf_step_`. `eps` is the radius of the ball in the
    L2 norm of a whole image with pixels as they are, 0.5 for instance.
    """
    return _place(*_pulled(x_adv.double(), 0.0, x, eps, bounds), x, bounds)


@fused(sums=True)
def l2_step_(
    x_adv: Tensor,
    grad: Tensor,
    x: Tensor,
    *,
    eps: float | Tensor,
    step_size: float | Tensor,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """One projected ascent step of length `step_size` along the gradient, in place.

    x_adv <- project(x_adv + step_size * grad / ||grad||_2), the norm over each sample: the L2 form
    of the PGD update of Madry et al. 2018 (arXiv:1706.06083), with the projection of `l2_project_`,
    whose guarantees, layouts and special values hold here too.

    The length of the new distance follows from three dot products, so that memory is read twice and
    written once. Where they cancel, so that the length is not known well, the sample ends a little
    deeper in the ball instead.

    A sample without a gradient (all 0) is only projected. A gradient entry that is NaN or infinite
    counts as 0, in the norm as well. A gradient of any magnitude gives a step of full length (for
    fp64 tensors from 1e-154 on). A sample that stays in the ball whichever way its elements are
    rounded gets nearest rounding; one that may touch the sphere gets rounding toward `x`. In bf16 a
    step that is shorter than half a spacing in every element moves nothing.

    Arguments, layouts, result and errors: see `linf_step_`. `eps` and `step_size` are lengths in
    the L2 norm of a whole image; a NaN in `step_size` makes its sample NaN.
    """
    stride = _stride(grad, step_size, x)
    return _place(*_pulled(x_adv.double(), stride, x, eps, bounds), x, bounds)


@fused(written="x_prev", sums=True)
def apgd_l2_step_(
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
    """One step of APGD in the L2 ball: the new iterate takes the memory of the old one.

    As `apgd_linf_step_`, with u = P(x_adv + step_size * grad / ||grad||_2) and P the projection of
    `l2_project_`, radial then clamped (Croce & Hein 2020, arXiv:2003.01690, Algorithm 1, line 7).
    Guarantees, layouts and special values are those of `l2_step_`; u is not rounded to the dtype. A
    NaN in `x_adv` or, with momentum below 1, in `x_prev` makes its whole sample NaN.

    Arguments, result and errors: see `apgd_linf_step_`. `eps` and `step_size` are lengths in the L2
    norm of a whole image.
    """
    start, stride = x_adv.double(), _stride(grad, step_size, x)
    base, distance, _ = _pulled(start, stride, x, eps, bounds)
    u = clamp(base + distance, *box_limits(*bounds, x.dtype))
    point = momentum_point(start, x_prev, u, per_sample(momentum, x))
    point = clamp(point, -(2.0**120), 2.0**120)  # as in a kernel, where fp32 would overflow
    return _place(*_pulled(point, 0.0, x, eps, bounds), x, bounds)


@lru_cache(maxsize=256)
def rounding_slack(per_sample: int, low: float, high: float, dtype: torch.dtype) -> float:
    """How far a point may move when `per_sample` values within [low, high] are rounded."""
    mantissa, exponent = math.frexp(max(abs(low), abs(high)))
    info = torch.finfo(dtype)
    spacing = math.ldexp(info.eps, exponent - (2 if mantissa == 0.5 else 1))
    smallest = info.smallest_normal * info.eps
    return 1.01 * math.sqrt(per_sample) * max(spacing, smallest) / 2


def _norm(value: Tensor) -> Tensor:
    """The length of each sample, shaped (B, 1, ...)."""
    squared = value.square().reshape(value.shape[0], -1).sum(1)
    return squared.sqrt().reshape(-1, *[1] * (value.ndim - 1))


def _stride(grad: Tensor, step_size: float | Tensor, x: Tensor) -> Tensor:
    """What a step adds, in fp64; 0 for a sample without a gradient."""
    slope = torch.where(torch.isfinite(grad), grad, 0.0).double()
    largest = slope.abs().reshape(slope.shape[0], -1).amax(1)
    slope = slope / largest.reshape(-1, *[1] * (x.ndim - 1))  # no square of it overflows
    length = per_sample(step_size, x).double().clamp(max=LONGEST)
    return torch.where(slope.isnan(), 0.0, length / _norm(slope) * slope)


def _pulled(
    point: Tensor, stride: Tensor | float, x: Tensor, eps: float | Tensor, bounds: Bounds
) -> tuple[Tensor, Tensor, Tensor]:
    """Two fp64 summands of point + stride brought into the ball, and whether to round toward `x`.

    Without a stride a sample inside the ball stays what it is.
    """
    origin, radius = x.double(), per_sample(eps, x).double()
    radius = torch.where(radius < SMALLEST, 0.0, radius)
    way = (point - origin) + stride
    length, farthest = _norm(way), _norm(point - origin) + _norm(way - (point - origin))
    reach = (length.square() + SUM_ERROR * farthest.square()).sqrt()
    reach = reach + 4 * torch.finfo(compute_dtype(x.dtype)).eps * farthest
    still = (point - origin == way).reshape(x.shape[0], -1).all(1).reshape(length.shape)
    inside = torch.where(still, length, reach) <= radius
    slack = rounding_slack(x[:1].numel(), *box_limits(*bounds, x.dtype), x.dtype)
    toward = ~(inside & (reach + slack <= radius))
    ratio = radius / reach
    ratio = torch.where(ratio < torch.finfo(torch.float32).tiny, 0.0, ratio)  # as in a kernel
    alpha = torch.where(reach < math.inf, ratio, math.nan)
    base = torch.where(inside, point, origin)
    return base, torch.where(inside, stride, alpha * way), toward


def _place(a: Tensor, b: Tensor, toward: Tensor, x: Tensor, bounds: Bounds) -> Tensor:
    """a + b in the dtype of `x`, in the box: the nearest number or, if `toward`, none farther."""
    total = a + b
    nearest = total.to(x.dtype)
    excess = (nearest.double() - total) - sum_error(a, b, total)
    beyond = ((nearest > x) & (excess > 0)) | ((nearest < x) & (excess < 0))
    placed = torch.where(toward & beyond, neighbour(nearest, down=nearest > x), nearest)
    return clamp(placed, *box_limits(*bounds, x.dtype)) + 0.0
