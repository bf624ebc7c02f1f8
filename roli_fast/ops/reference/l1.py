"""The specification of the L1 ops."""

import torch
from torch import Tensor

from roli_fast.ops.reference.rounding import BITS, box_limits, compute_dtype, per_sample

SLACK = 2.0**-40
"""The part of eps that a projected sample leaves free: no order of summation finds it outside."""


def l1_project(
    x_adv: Tensor,
    x: Tensor,
    *,
    eps: float | Tensor,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """What `ops.l1_project_` writes into `x_adv`, as a new tensor. See there.

    The length of the result falls as the threshold rises, so the smallest threshold at which it is
    at most eps is found by bisection of the numbers of the compute dtype, in their order; of those
    with 16 significant bits for images of 16 bits.
    """
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


def l1_step(  # noqa: PLR0913 - the op's own arguments
    x_adv: Tensor,
    grad: Tensor,
    x: Tensor,
    *,
    eps: float | Tensor,
    step_size: float | Tensor,
    density: float | Tensor,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """What `ops.l1_step_` writes into `x_adv`, as a new tensor. See there."""
    size = per_sample(step_size, x)
    magnitude = torch.where(torch.isfinite(grad), grad.abs(), 0.0).reshape(x.shape[0], -1)
    ranks = kept_rank(density, x)
    smallest = magnitude.sort(dim=1).values.gather(1, ranks)
    moves = (magnitude >= smallest) & (magnitude > 0)
    count = moves.sum(1).to(size.dtype).reshape(-1, *[1] * (x.ndim - 1))
    length = size / count
    step = torch.where(moves.view(x.shape), torch.where(grad < 0, -length, length), 0.0)
    moved = (x_adv.to(size.dtype) + step).to(x.dtype)
    return l1_project(moved, x, eps=eps, bounds=bounds)


def kept_rank(density: float | Tensor, x: Tensor) -> Tensor:
    """(B, 1): the ascending rank of the smallest magnitude that moves, by AutoAttack's formula."""
    numel = x[0].numel()
    fraction = per_sample(density, x).to(torch.float32).reshape(-1, 1).expand(x.shape[0], 1)
    exact = {"dtype": torch.float32, "device": x.device}
    place = ((1 - fraction) * torch.full((), float(numel), **exact)).nan_to_num(0.0)
    last = torch.full((), float(numel - 1), **exact)
    whole = torch.where(place >= last, 0.0, place.clamp(min=0.0)).long()
    return torch.where(place >= last, numel - 1, whole)


def _shrunk(x_adv: Tensor, x: Tensor, threshold: Tensor, box: tuple[float, float]) -> Tensor:
    """`x_adv`, each sample moved towards `x` by its threshold but not beyond, in the box."""
    low, high = box
    centre = torch.where(x < low, low, x)
    centre = torch.where(centre > high, high, centre)
    above = x_adv > x
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
