"""What FAB's steps are timed against, for benchmarks/groups/ops.py."""

from collections.abc import Callable

import torch
from torch import Tensor

from roli_fast import ops

ROUNDS = 9  # the sorts take a second
Call = Callable[[], object]
TARGETS = {"fab_linf_step_ 64x3x32x32": {"eager": 10.0}}
ORDERS = {"linf": torch.inf, "l2": 2.0, "l1": 1.0}


def images(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> list[Tensor]:
    """Points near x, normals and x; small values, as along FAB's way."""
    generator = torch.Generator().manual_seed(0)
    x, grad = torch.rand(shape, generator=generator), torch.randn(shape, generator=generator)
    x_adv = (x + 0.03 * torch.randn(shape, generator=generator)).clamp(0, 1)
    return [value.to(device, dtype) for value in (x_adv, 0.01 * grad, x)]


def by_sorting(norm: str, points: Tensor, normal: Tensor, gap: Tensor) -> Tensor:
    """The ways to planes inside [0, 1], with the points at which entries become full in order."""
    direction = -gap.sign()[:, None] * normal
    room = torch.where(direction > 0, 1 - points, points)
    size = normal.abs()
    if norm == "l1":
        heavy, order = size.sort(dim=1, descending=True)
        space = room.gather(1, order)
        before = (heavy * space).cumsum(1) - heavy * space
        length = ((gap.abs()[:, None] - before).clamp(min=0) / heavy).minimum(space)
        return direction.sign() * torch.zeros_like(room).scatter(1, order, length)
    slope = torch.ones_like(size) if norm == "linf" else size
    full, order = (room / slope).sort(dim=1)
    gain, reach = (size * slope).gather(1, order), (size * room).gather(1, order)
    left = gain.flip(1).cumsum(1).flip(1)
    done = reach.cumsum(1) - reach + full * left >= gap.abs()[:, None]
    first = done.long().argmax(1, keepdim=True)
    closed = (reach.cumsum(1) - reach).gather(1, first)
    level = (gap.abs()[:, None] - closed) / left.gather(1, first)
    level = torch.where(done[:, -1:], level, torch.inf)
    return direction.sign() * torch.minimum(room, level * slope)


def eager_step(norm: str, x_adv: Tensor, grad: Tensor, x: Tensor, value: Tensor) -> Tensor:
    """The step as AutoAttack goes about it: both projections in one, by sorting."""
    point, origin, normal = x_adv.flatten(1), x.flatten(1), grad.flatten(1)
    gap = torch.cat([value, value + (normal * (origin - point)).sum(1)])
    ways = by_sorting(norm, torch.cat([point, origin]), normal.repeat(2, 1), gap)
    here, there = ways.chunk(2)
    lengths = [way.norm(ORDERS[norm], dim=1, keepdim=True).clamp(min=1e-8) for way in (here, there)]
    alpha = (lengths[0] / (lengths[0] + lengths[1])).clamp(max=0.1)
    moved = (point + 1.05 * here) * (1 - alpha) + (origin + 1.05 * there) * alpha
    return moved.clamp(0, 1).view(x.shape)


def step(norm: str) -> Callable[[tuple[int, ...], torch.dtype, str], dict[str, Call]]:
    """Candidates for one norm; native pays for one copy more, to start from the same point."""

    def candidates(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> dict[str, Call]:
        x_adv, grad, x = images(shape, dtype, device)
        value = torch.linspace(-0.5, 0.5, shape[0], device=device)
        target, native = x_adv.clone(), getattr(ops, f"fab_{norm}_step_")
        options = {"value": value, "alpha_max": 0.1, "eta": 1.05}
        wide = value.to(dtype)
        return {
            "native": lambda: native(target.copy_(x_adv), grad, x, **options),
            "eager": lambda: eager_step(norm, x_adv, grad, x, wide),
            "copy": lambda: (target.copy_(x_adv), target.copy_(grad), target.copy_(x)),
        }

    return candidates


CASES = {f"fab_{norm}_step_": step(norm) for norm in ORDERS}
