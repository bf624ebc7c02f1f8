"""Ops in the L2 ball: the projection, PGD's step and APGD's, and why results lie in the ball.

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
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from roli_fast.ops import native
from roli_fast.ops.fused import Bounds, fused, launch
from roli_fast.ops.linf import momentum_point
from roli_fast.ops.memory import Amount
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


def _launch_summing(
    kernel: str, target: Tensor, addresses: Sequence[int], amounts: Sequence[Amount], box: Bounds
) -> None:
    """A kernel with L2 sums: its slack and, on a GPU, memory for partial sums."""
    samples, length = target.shape[0], target.numel() // target.shape[0]
    slack = rounding_slack(length, *box, target.dtype)
    if not target.is_cuda:
        return launch(kernel, target, addresses, amounts, box, slack, 0)
    size = native.reduction_workspace(samples, length)
    space = torch.empty(size, dtype=torch.float64, device=target.device)
    return launch(kernel, target, addresses, amounts, box, slack, space.data_ptr())


def _launch_l2_projection(
    _: str, target: Tensor, addresses: Sequence[int], amounts: Sequence[Amount], box: Bounds
) -> None:
    """The step's kernel, which only projects where there is no gradient."""
    x_adv, x = addresses
    _launch_summing("l2_step", target, (x_adv, 0, x), (*amounts, 0.0), box)


@fused(_launch_l2_projection)
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

    Contiguous and channels_last tensors (`x_adv` decides; `x` is copied to its layout where it
    differs) are updated where they are. Any other strides cost one copy of `x_adv`.

    Args:
        x_adv: the points to project, shape (B, ...), fp32, bf16, fp16 or fp64 (fp64 without a
            kernel); written.
        x: the original images, same shape, dtype and device.
        eps: radius of the ball in the L2 norm of a whole image with pixels as they are, 0.5 for
            instance: a number >= 0, or a tensor (B,), one radius a sample.
        bounds: lowest and highest valid pixel value.

    Returns:
        `x_adv`.

    Raises:
        ArgumentTypeError: an argument has a wrong type, dtype or device.
        ArgumentError: a wrong shape or number; `x` or `eps` shares memory with `x_adv`; grad mode
            is on and an argument requires grad (the op has no derivative).
    """
    return pulled(x_adv.to(compute_dtype(x.dtype)), x, limits_of(x, eps, bounds))


@fused(_launch_summing)
def l2_step_(  # noqa: PLR0913 - the step's own quantities
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

    Args:
        x_adv: the images to move, shape (B, ...), fp32, bf16, fp16 or fp64 (fp64 without a kernel).
            Not checked against ball or box; written.
        grad: gradient of the loss by `x_adv`, same shape, dtype and device.
        x: the original images, same shape, dtype and device.
        eps: radius of the ball, in the L2 norm of a whole image: a number >= 0, or a tensor (B,).
        step_size: length of the step in the same norm and forms. NaN makes its sample NaN.
        bounds: lowest and highest valid pixel value.

    Returns:
        `x_adv`.

    Raises:
        ArgumentTypeError: an argument has a wrong type, dtype or device.
        ArgumentError: a wrong shape or number; an argument shares memory with `x_adv`; grad mode is
            on and an argument requires grad (the step has no derivative).
    """
    limits = limits_of(x, eps, bounds)
    base, distance, toward = stepped(x_adv, grad, x, step_size, limits)
    return place(base, distance, x, toward, limits)


@fused(_launch_summing, written="x_prev")
def apgd_l2_step_(  # noqa: PLR0913 - the step's own quantities
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
    limits = limits_of(x, eps, bounds)
    base, distance, _ = stepped(x_adv, grad, x, step_size, limits)
    u = clamp(base + distance, limits.low, limits.high)
    point = momentum_point(x_adv.to(u.dtype), x_prev, u, momentum)
    # a number, also where iterates far apart overflow
    return pulled(clamp(point, -(2.0**120), 2.0**120), x, limits)


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
