"""Ops in the L1 ball: the projection, and APGD's sparse step."""

import torch
from torch import Tensor

from roli_fast.ops.fused import fused
from roli_fast.ops.rounding import BITS, box_limits, clamp, compute_dtype, per_sample

SLACK = 2.0**-40
"""The part of eps that a projected sample leaves free: no order of summation finds it outside."""


@fused()
def l1_project_(
    x_adv: Tensor,
    x: Tensor,
    *,
    eps: float | Tensor,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """The nearest point of the L1 ball around `x` that is within the box, in place.

    With d = x_adv - x and room_j the way from x_j to the box in the direction of d_j, the Euclidean
    projection is d_j <- sign(d_j) min(max(|d_j| - a, 0), room_j), a = 0 if that is short enough and
    otherwise the a at which the sum of |d_j| is eps (Croce & Hein 2021, "Mind the box",
    arXiv:2103.01208, section 3). No sorting: `a` is searched by Newton's steps and bisection.

    x_adv - a sign(d) is computed in fp32 (fp64 for fp64 tensors) and rounded to nearest, and `a` is
    the smallest fp32 number (of 16 significant bits for bf16 and fp16) at which the *rounded*
    result, measured in fp64, is within eps (its fp32 value) less one part in 10^12. So the result
    is inside the ball and the box in every dtype, a point that is inside already stays as it is,
    and the threshold does not depend on how it is searched. In bf16 and fp16, values of one spacing
    move together, which may leave a part of eps unused.

    A NaN in `x_adv` or `x` stays NaN and counts as 0; a NaN in `eps` gives NaN. If no threshold is
    enough (an infinite value, or an `x` outside the box by more than eps), the result is `x`, cut
    to the box. A result of zero is +0.

    Each sample is worked on by one CPU thread, or by one block of a GPU.

    Arguments, result and errors: see `linf_step_`. `eps` is a sum over all entries of a sample, in
    the units of the images.
    """
    # The length of the result falls as the threshold rises, so the smallest threshold at which it
    # is at most eps is found by bisection of the numbers of the compute dtype, in their order; of
    # those with 16 significant bits for images of 16 bits.
    dtype, samples = compute_dtype(x.dtype), x.shape[0]
    box = box_limits(*bounds, x.dtype)
    radius = per_sample(eps, x)
    limit = radius.double().reshape(-1).expand(samples)
    zero = torch.zeros(samples, dtype=dtype, device=x.device)
    inside = _length(_shrunk(x_adv, x, zero, box), x_adv, x) <= limit
    below, above = zero.view(BITS[dtype]), (zero + torch.inf).view(BITS[dtype])
    grain = 256 if x.dtype.itemsize == 2 else 1
    for _ in range(dtype.itemsize * 8 - grain.bit_length()):
        middle = below + (above - below) // (2 * grain) * grain
        moved = _shrunk(x_adv, x, middle.view(dtype), box)
        fits = _length(moved, x_adv, x) <= limit * (1 - SLACK)
        below, above = torch.where(fits, below, middle), torch.where(fits, middle, above)
    threshold = torch.where(inside, zero, above.view(dtype))
    result = _shrunk(x_adv, x, threshold, box)
    unknown = torch.isnan(x_adv) | torch.isnan(x) | torch.isnan(radius)
    return torch.where(unknown, torch.nan, result).to(x.dtype) + 0.0


@fused()
def l1_step_(
    x_adv: Tensor,
    grad: Tensor,
    x: Tensor,
    *,
    eps: float | Tensor,
    step_size: float | Tensor,
    density: float | Tensor,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """One sparse ascent step in the L1 ball, in place: APGD's, and with fixed numbers SLIDE's.

    The entries of `grad` that are largest in magnitude move, each by step_size sign(grad) / (how
    many move), so that the step is `step_size` long in L1; then `l1_project_`. An entry moves if it
    is at least as large as the one of rank floor((1 - density) d) in ascending order, counted from
    0 among the d of its sample (in fp32, at most d - 1: at least one entry), and is not 0; ties
    move together. Croce & Hein 2021, "Mind the box" (arXiv:2103.01208, section 4.1 and its code).

    APGD for L1 changes step size and density sample by sample and has no momentum: this op with
    tensors (B,) is its whole update, so there is no other.

    The moved image is rounded once to its dtype and then projected. A gradient entry that is NaN or
    infinite counts as 0 and moves nothing; for x_adv, x, eps, layouts and zero see `l1_project_`.

    Arguments, result and errors: see `linf_step_`. `eps` and `step_size` are sums over all entries
    of a sample, in the units of the images; `density` is the part of a sample's entries that moves,
    in [0, 1]: a number, or a tensor (B,).
    """
    size = per_sample(step_size, x)
    magnitude = torch.where(torch.isfinite(grad), grad.abs(), 0.0).reshape(x.shape[0], -1)
    ranks = kept_rank(density, x)
    smallest = magnitude.sort(dim=1).values.gather(1, ranks)
    moves = (magnitude >= smallest) & (magnitude > 0)
    count = moves.sum(1).to(size.dtype).reshape(-1, *[1] * (x.ndim - 1))
    length = size / count
    step = torch.where(moves.view(x.shape), torch.where(grad < 0, -length, length), 0.0)
    moved = (x_adv.to(size.dtype) + step).to(x.dtype)
    return l1_project_.reference(moved, x, eps=eps, bounds=bounds)  # type: ignore[attr-defined]


def kept_rank(density: float | Tensor, x: Tensor) -> Tensor:
    """(B, 1): the ascending rank of the smallest magnitude that moves, by AutoAttack's formula."""
    last = x[0].numel() - 1
    fraction = per_sample(density, x).float().reshape(-1, 1).expand(x.shape[0], 1)
    place = ((1 - fraction) * (last + 1)).nan_to_num(0.0).clamp(min=0.0)
    return torch.where(place >= last, 0.0, place).long() + torch.where(place >= last, last, 0)


def _shrunk(x_adv: Tensor, x: Tensor, threshold: Tensor, box: tuple[float, float]) -> Tensor:
    """`x_adv`, each sample moved towards `x` by its threshold but not beyond, in the box."""
    (low, high), centre, above = box, clamp(x, *box), x_adv > x
    back = threshold.reshape(-1, *[1] * (x.ndim - 1))
    moved = (x_adv.to(back.dtype) - torch.where(above, back, -back)).to(x.dtype)
    floor, ceiling = torch.where(above, centre, low), torch.where(above, high, centre)
    moved = torch.where(moved > floor, moved, floor)
    moved = torch.where(moved < ceiling, moved, ceiling)
    return torch.where(torch.isfinite(back), moved, centre)  # infinity: back to x


def _length(moved: Tensor, x_adv: Tensor, x: Tensor) -> Tensor:
    """The L1 distance of each sample from `x`, in fp64; a NaN counts as 0."""
    change = (moved.double() - x.double()).abs()
    change = torch.where((change > 0) & ~torch.isnan(x_adv), change, 0.0)
    return change.reshape(x.shape[0], -1).sum(1)
