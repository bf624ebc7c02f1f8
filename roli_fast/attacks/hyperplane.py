"""The shortest way from a point to a hyperplane without leaving the box, in three norms."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from roli_fast.errors import ArgumentError, describe

ORDERS = {"linf": math.inf, "l2": 2.0, "l1": 1.0}
"""Norm -> p."""

DUAL = {"linf": 1.0, "l2": 2.0, "l1": math.inf}
"""Norm -> q with 1/p + 1/q = 1: a plane is |gap| / ||weight||_q away, where no box limits."""


def check_norm(norm: str | None) -> None:
    """Raise for a norm that this file knows no projection for."""
    if norm is not None and norm not in ORDERS:
        raise ArgumentError(describe("norm", f"one of: {', '.join(ORDERS)}", repr(norm)))


def step_to_plane(
    points: Tensor, weight: Tensor, gap: Tensor, *, norm: str, bounds: tuple[float, float]
) -> Tensor:
    """The shortest d with gap + weight . d = 0 and points + d inside the bounds.

    Where no point of the box lies on the plane, the corner nearest to it. Equations 4 to 6 of Croce
    & Hein, "Minimally distorted adversarial examples with a fast adaptive boundary attack", ICML
    2020 (arXiv:1907.02044). Entries of weight 0 do not move. Every other moves in the direction
    that closes the gap: by min(room, level) for linf, min(room, level |weight|) for l2; for l1 the
    heaviest move first, each as far as it can.

    Args:
        points: (P, B, D), inside the bounds; several sets for the same planes.
        weight: normals (B, D), finite.
        gap: (P, B), the value weight . point - offset of each plane at its point.
        norm: "linf", "l2" or "l1".
        bounds: lowest and highest valid entry.

    Returns:
        d, like `points`.
    """
    low, high = bounds
    direction = torch.where(gap >= 0, -1.0, 1.0).to(weight.dtype)[..., None] * weight
    room = torch.where(direction > 0, high - points, points - low).clamp(min=0)
    room = torch.where(direction != 0, room, 0.0)
    need, size = gap.abs(), weight.abs()
    if norm == "l1":
        length = _heaviest_first(size, room, need)
    else:
        length = _up_to_one_level(
            size, torch.ones_like(size) if norm == "linf" else size, room, need
        )
    return torch.copysign(length, direction)


def _up_to_one_level(size: Tensor, slope: Tensor, room: Tensor, need: Tensor) -> Tensor:
    """min(room, level * slope), at the level where sum(size * that) is `need`.

    The sum is concave and piecewise linear in the level, so Newton's method from 0 never passes the
    root: entries only ever become full, and when none does any more the level is exact. That takes
    about log D passes in place of a sort.
    """
    full = room <= 0
    reach, gain = size * room, size * slope
    while True:
        rest = need - torch.where(full, reach, 0.0).sum(-1)
        level = (rest.clamp(min=0) / torch.where(full, 0.0, gain).sum(-1))[..., None]
        now = full | (slope * level >= room)
        if torch.equal(now, full):
            return torch.where(full, room, slope * level)
        full = now


def _heaviest_first(size: Tensor, room: Tensor, need: Tensor) -> Tensor:
    """Each entry as far as it can in the order of `size`, until sum(size * length) is `need`."""
    heavy, order = size.sort(dim=-1, descending=True)
    order = order.expand_as(room)
    space = room.gather(-1, order)
    reach = heavy * space
    before = functional.pad(reach.cumsum(-1)[..., :-1], (1, 0))
    left = (need[..., None] - before).clamp(min=0)
    length = torch.where(left >= reach, space, left / heavy)
    return torch.zeros_like(room).scatter(-1, order, length)
