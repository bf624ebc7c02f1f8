"""FAB's steps: the ways to a plane inside the box, and a step between two of them.

Equations 4 to 8 of Croce & Hein, "Minimally distorted adversarial examples with a fast adaptive
boundary attack", ICML 2020 (arXiv:1907.02044). Of two ends, the point and x, each goes the shortest
way d with gap + normal . d = 0 that stays in the box. An entry whose normal is 0 does not move,
every other moves so that the gap closes: by min(room, level) for linf, by min(room, level |normal|)
for l2, and for l1 the largest normals all the way, those at the cut by the share that is missing.
The reference sorts and computes in fp64.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from roli_fast.ops.fused import Amount, Bounds, fused
from roli_fast.ops.rounding import box_limits, clamp, per_sample

SHORTEST = 1e-8
"""A shorter way counts as this long: two ends on the plane are mixed in equal parts."""

Way = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(|normal| (B, D), room (B, D), |gap| (B, 1)) -> distances like room."""


@fused()
def fab_linf_step_(
    x_adv: Tensor,
    grad: Tensor,
    x: Tensor,
    *,
    value: float | Tensor,
    alpha_max: float | Tensor,
    eta: float | Tensor,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """One step of FAB towards a linearised decision boundary, in place.

    With the plane {z: value + grad . (z - x_adv) = 0}, let d be the shortest way from `x_adv` to it
    that stays in the box and d0 the one from `x`; then

        a = min(alpha_max, |d| / (|d| + |d0|))
        x_adv <- clamp((1 - a) (x_adv + eta d) + a (x + eta d0), low, high)

    (equations 4 to 8 of Croce & Hein 2020, arXiv:1907.02044; ways shorter than 1e-8 count as 1e-8).
    In linf every entry whose normal is not 0 moves by the same level, or as far as the box lets it.
    The level is searched by Newton's method from 0, which ends at the exact one, without sorting.
    Where no point of the box lies on the plane, a way leads to the corner nearest to it.

    Sums over a sample are fp64, in an order that depends on its size and layout alone, so results
    do not depend on threads or on the batch; the rest is fp32 (fp64 for fp64 tensors), rounded once
    to nearest. An entry of `grad` that is NaN or infinite counts as 0. An infinite `value` leads
    into the corner. A NaN or an infinity in `x_adv` or `x` and a NaN in `value` or `alpha_max` make
    their whole sample NaN. A result of zero is +0.

    Layouts are those of `linf_step_`. Each sample is worked on by one CPU thread, or by one block
    of a GPU.

    Args:
        x_adv: where the searches stand, within the box, shape (B, ...), fp32, bf16, fp16 or fp64
            (fp64 without a kernel); written.
        grad: normals of the planes, same shape, dtype and device.
        x: the original images, within the box, same shape, dtype and device.
        value: of the linear functions at `x_adv`, of either sign: a tensor (B,), or a number.
        alpha_max: largest share of x's end, in [0, 1]: a number, or a tensor (B,).
        eta: overshoot, 1 ends on the plane and 1.05 is 5 % beyond: a number >= 0 or a tensor (B,).
        bounds: lowest and highest valid pixel value.

    Returns:
        `x_adv`. Errors: see `linf_step_`.
    """

    def way(size: Tensor, room: Tensor, need: Tensor) -> Tensor:
        return _up_to_one_level(size, torch.ones_like(size), room, need)

    def length(distance: Tensor) -> Tensor:
        return distance.amax(1, keepdim=True)

    return _step(way, length, (x_adv, grad, x), (value, alpha_max, eta), bounds)


@fused()
def fab_l2_step_(
    x_adv: Tensor,
    grad: Tensor,
    x: Tensor,
    *,
    value: float | Tensor,
    alpha_max: float | Tensor,
    eta: float | Tensor,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """As `fab_linf_step_`, with the shortest ways in the L2 norm: along the normal, in the box.

    A normal of any magnitude serves; an entry 10^38 times smaller than others may count as 0.
    """

    def way(size: Tensor, room: Tensor, need: Tensor) -> Tensor:
        return _up_to_one_level(size, size, room, need)

    def length(distance: Tensor) -> Tensor:
        return distance.square().sum(1, keepdim=True).sqrt()

    return _step(way, length, (x_adv, grad, x), (value, alpha_max, eta), bounds)


@fused()
def fab_l1_step_(
    x_adv: Tensor,
    grad: Tensor,
    x: Tensor,
    *,
    value: float | Tensor,
    alpha_max: float | Tensor,
    eta: float | Tensor,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """As `fab_linf_step_`, with the shortest ways in the L1 norm: the largest normals move first.

    Each goes to the box's wall before the next moves at all; entries of one magnitude share what is
    left for them. Which magnitude is the last is found by bisection of the floats, without sorting.
    """

    def length(distance: Tensor) -> Tensor:
        return distance.sum(1, keepdim=True)

    return _step(_largest_first, length, (x_adv, grad, x), (value, alpha_max, eta), bounds)


def _step(
    way: Way,
    length: Callable[[Tensor], Tensor],
    images: tuple[Tensor, Tensor, Tensor],
    amounts: tuple[Amount, Amount, Amount],
    bounds: Bounds,
) -> Tensor:
    """The step of every norm; `length` is that of distances (B, D), as (B, 1)."""
    x_adv, grad, x = images
    samples, box = x.shape[0], box_limits(*bounds, x.dtype)
    point, origin = (image.double().reshape(samples, -1) for image in (x_adv, x))
    normal = torch.where(torch.isfinite(grad), grad, 0.0).double().reshape(samples, -1)
    gap, share, overshoot = (per_sample(n, x).double().reshape(-1, 1) for n in amounts)
    largest = normal.abs().amax(1, keepdim=True)
    largest = torch.where(largest > 0, largest, 1.0)
    normal, gap = normal / largest, gap / largest  # no product of them overflows
    between = (normal * (origin - point)).sum(1, keepdim=True)
    ends, lengths = [], []
    for start, missing in ((point, gap), (origin, gap + between)):
        direction = torch.where(missing >= 0, -normal, normal)
        room = torch.where(direction > 0, box[1] - start, start - box[0])
        room = torch.where((room > 0) & (normal != 0), room, 0.0)
        distance = way(normal.abs(), room, missing.abs())
        ends.append(start + overshoot * torch.copysign(distance, direction))
        lengths.append(length(distance).clamp(min=SHORTEST))
    alpha = lengths[0] / (lengths[0] + lengths[1])
    alpha = torch.where(alpha <= share, alpha, share)
    known = torch.isfinite(between) & ~torch.isnan(gap)
    alpha = torch.where(known, alpha, torch.nan)
    mixed = ends[0] * (1 - alpha) + ends[1] * alpha
    return clamp(mixed.to(x.dtype).view(x.shape), *box) + 0.0


def _up_to_one_level(size: Tensor, slope: Tensor, room: Tensor, need: Tensor) -> Tensor:
    """min(room, level * slope), at the level where the sum of size * that is `need`.

    The sum is concave and piecewise linear in the level, with a kink where an entry becomes full.
    """
    full_at, order = torch.where(slope > 0, room / slope, torch.inf).sort(dim=1)
    reach, gain = (value.gather(1, order) for value in (size * room, size * slope))
    before = reach.cumsum(1) - reach  # of those that are full when this one becomes it
    open_gain = gain.flip(1).cumsum(1).flip(1)
    closed = before + full_at * open_gain >= need
    first = closed.to(torch.uint8).argmax(1, keepdim=True)
    level = (need - before.gather(1, first)) / open_gain.gather(1, first)
    step = torch.where(closed.any(1, keepdim=True), level, torch.inf) * slope
    return torch.where(step < room, step, room)


def _largest_first(size: Tensor, room: Tensor, need: Tensor) -> Tensor:
    """Each entry as far as it can in the order of `size`, until the sum of size * that is `need`.

    Entries of one size share what is left for them.
    """
    reach = size * room
    sizes, order = size.sort(dim=1, descending=True)
    closed = reach.gather(1, order).cumsum(1) >= need
    first = closed.to(torch.uint8).argmax(1, keepdim=True)
    cut = torch.where(closed[:, -1:], sizes.gather(1, first), 0.0)
    cut = torch.where(need > 0, cut, torch.inf)
    whole, part = size > cut, size == cut
    left = need - torch.where(whole, reach, 0.0).sum(1, keepdim=True)
    tied = torch.where(part, reach, 0.0).sum(1, keepdim=True)
    share = (left.clamp(min=0.0) / tied).clamp(max=1.0)
    return torch.where(whole, room, torch.where(part, share * room, 0.0))
