"""FAB's steps: the ways to a plane inside the box, and a step between two of them.

Equations 4 to 8 of Croce & Hein, "Minimally distorted adversarial examples with a fast adaptive
boundary attack", ICML 2020 (arXiv:1907.02044). Of two ends, the point and x, each goes the shortest
way d with gap + normal . d = 0 that stays in the box. An entry whose normal is 0 does not move,
every other moves so that the gap closes: by min(room, level) for linf, by min(room, level |normal|)
for l2, and for l1 the largest normals all the way, those at the cut by the share that is missing.
Sums and what follows from them once a sample are fp64.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from roli_fast.ops.fused import Bounds, fused, launch
from roli_fast.ops.l2 import inverse_power
from roli_fast.ops.memory import Amount
from roli_fast.ops.rounding import box_limits, clamp, compute_dtype, per_sample

SHORTEST = 1e-8
"""A shorter way counts as this long: two ends on the plane are mixed in equal parts."""

Way = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(|normal| (B, D), room (B, D), |gap| (B, 1)) -> distances like room."""


def _launch_fab(
    kernel: str, target: Tensor, addresses: Sequence[int], amounts: Sequence[Amount], box: Bounds
) -> None:
    """One kernel for all norms; its code is that of csrc/ops.h."""
    norm = ("fab_linf_step", "fab_l2_step", "fab_l1_step").index(kernel)
    launch("fab_step", target, addresses, amounts, box, norm)


@fused(_launch_fab)
def fab_linf_step_(  # noqa: PLR0913 - the step's own quantities
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

    Contiguous and channels_last tensors are updated where they are; other strides cost one copy of
    `x_adv`. Each sample is worked on by one CPU thread, or by one block of a GPU.

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
        `x_adv`.

    Raises:
        ArgumentTypeError: an argument has a wrong type, dtype or device.
        ArgumentError: a wrong shape or number; another argument shares memory with `x_adv`; grad
            mode is on and an argument requires grad (the op has no derivative).
    """

    def way(size: Tensor, room: Tensor, need: Tensor) -> Tensor:
        return _up_to_one_level(size, torch.ones_like(size), room, need)

    def length(distance: Tensor) -> Tensor:
        return distance.amax(1, keepdim=True).double()

    return _step(way, length, x_adv, grad, x, value, alpha_max, eta, bounds)


@fused(_launch_fab)
def fab_l2_step_(  # noqa: PLR0913 - the step's own quantities
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

    A normal of any magnitude serves; one entry 10^38 times smaller than the others counts as 0.
    """

    def way(size: Tensor, room: Tensor, need: Tensor) -> Tensor:
        power = inverse_power(size.double().square().sum(1, keepdim=True).sqrt())
        return _up_to_one_level(size, power.to(size.dtype) * size, room, need)

    def length(distance: Tensor) -> Tensor:
        return distance.double().square().sum(1, keepdim=True).sqrt()

    return _step(way, length, x_adv, grad, x, value, alpha_max, eta, bounds)


@fused(_launch_fab)
def fab_l1_step_(  # noqa: PLR0913 - the step's own quantities
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
        return distance.double().sum(1, keepdim=True)

    return _step(_largest_first, length, x_adv, grad, x, value, alpha_max, eta, bounds)


def _step(  # noqa: PLR0913 - the op's own arguments
    way: Way,
    length: Callable[[Tensor], Tensor],
    x_adv: Tensor,
    grad: Tensor,
    x: Tensor,
    value: float | Tensor,
    alpha_max: float | Tensor,
    eta: float | Tensor,
    bounds: tuple[float, float],
) -> Tensor:
    """The step of every norm; `length` is that of distances (B, D), in fp64, (B, 1)."""
    dtype, samples, box = compute_dtype(x.dtype), x.shape[0], box_limits(*bounds, x.dtype)
    point, origin = (image.reshape(samples, -1).to(dtype) for image in (x_adv, x))
    normal = torch.where(torch.isfinite(grad), grad, 0.0).reshape(samples, -1).to(dtype)
    share, overshoot = (per_sample(n, x).reshape(-1, 1) for n in (alpha_max, eta))
    gap = per_sample(value, x).double().reshape(-1, 1).expand(samples, 1)
    between = (normal.double() * (origin.double() - point.double())).sum(1, keepdim=True)
    ends, lengths = [], []
    for start, missing in ((point, gap), (origin, gap + between)):
        direction = torch.where(missing >= 0, -1.0, 1.0).to(dtype) * normal
        room = torch.where(direction > 0, box[1] - start, start - box[0])
        room = torch.where((room > 0) & (normal != 0), room, 0.0)
        distance = way(normal.abs(), room, missing.abs())
        ends.append(start + overshoot * torch.copysign(distance, direction))
        lengths.append(length(distance).clamp(min=SHORTEST))
    alpha = (lengths[0] / (lengths[0] + lengths[1])).to(dtype)
    alpha = torch.where(alpha <= share, alpha, share)
    known = torch.isfinite(between) & ~torch.isnan(gap)
    alpha = torch.where(known, alpha, torch.nan)
    mixed = ends[0] * (1 - alpha) + ends[1] * alpha
    return clamp(mixed.to(x.dtype).view(x.shape), *box) + 0.0


def _up_to_one_level(size: Tensor, slope: Tensor, room: Tensor, need: Tensor) -> Tensor:
    """min(room, level * slope), at the level where the sum of size * that is `need`.

    The sum is concave and piecewise linear in the level, so Newton's method from 0 never passes the
    root: entries only ever become full, and when none does any more the level stays. That takes
    about log D passes in place of a sort.
    """
    level, most = torch.zeros_like(need, dtype=size.dtype), torch.finfo(size.dtype).max
    reach, gain = size.double() * room.double(), size.double() * slope.double()
    while True:
        step = slope * level
        full = step >= room
        left = need - torch.where(full, reach, 0.0).sum(1, keepdim=True)
        open_gain = torch.where(full, 0.0, gain).sum(1, keepdim=True)
        left = torch.where(left > 0, left, 0.0) / open_gain
        following = torch.where(left < most, left, most).to(level.dtype)
        if not _readable(level) or not bool((following > level).any()):
            return torch.where(step < room, step, room)
        level = torch.maximum(level, following)


def _largest_first(size: Tensor, room: Tensor, need: Tensor) -> Tensor:
    """Each entry as far as it can in the order of `size`, until the sum of size * that is `need`.

    Entries of one size share what is left for them.
    """
    reach = size.double() * room.double()
    sizes, order = size.sort(dim=1, descending=True)
    closed = reach.gather(1, order).cumsum(1) >= need
    first = closed.to(torch.uint8).argmax(1, keepdim=True)
    cut = torch.where(closed[:, -1:], sizes.gather(1, first), 0.0)
    cut = torch.where(need > 0, cut, torch.inf)
    whole, part = size > cut, size == cut
    left = need - torch.where(whole, reach, 0.0).sum(1, keepdim=True)
    tied = torch.where(part, reach, 0.0).sum(1, keepdim=True)
    left, most = torch.where(left > 0, left, 0.0) / tied, torch.finfo(size.dtype).max
    share = torch.where(left < most, left, most).to(size.dtype)
    return torch.where(whole, room, torch.where(part, share * room, 0.0))


def _readable(value: Tensor) -> bool:
    """Whether there are numbers to decide by."""
    return not (value.is_meta or isinstance(value, FakeTensor))
