"""What the L1 ops and the random starts are timed against, for benchmarks/groups/ops.py."""

from collections.abc import Callable

import torch
from torch import Tensor

from roli_fast import ops

EPS_SHARE, DENSITY = 72 / 150528, 0.05  # eps in proportion to the size of an image
Call = Callable[[], object]
ROUNDS = 9  # the sort takes over a second
TARGETS = {
    "l1_project_ 64x3x224x224": {"eager": 20.0},
    "l1_step_ 64x3x224x224": {"eager": 15.0},
}


def sorted_projection(change: Tensor, room: Tensor, eps: float) -> Tensor:
    """The projection as AutoAttack goes about it: sort all 2 d breakpoints of the length.

    `change` (B, d), and `room`, the way to the box in its direction.
    """
    size = change.abs()
    points = torch.cat([size, (size - room).clamp(min=0)], 1)
    points, order = points.sort(dim=1, descending=True)
    slope = torch.where(order < size.shape[1], 1.0, -1.0).cumsum(1)
    gaps = points - torch.cat([points[:, 1:], torch.zeros_like(points[:, :1])], 1)
    length = (slope * gaps).cumsum(1)
    first = (length < eps).sum(1, keepdim=True).clamp(max=points.shape[1] - 1)
    missing = length.gather(1, first) - eps
    threshold = points.gather(1, first) - gaps.gather(1, first)
    threshold = threshold + missing / slope.gather(1, first).clamp(min=1)
    threshold = torch.where(length[:, -1:] <= eps, 0.0, threshold)
    return change.sign() * torch.minimum((size - threshold).clamp(min=0), room)


def bisected_projection(change: Tensor, room: Tensor, eps: float) -> Tensor:
    """The same by 40 bisections, which a compiler can fuse."""
    size = change.abs()
    low, high = torch.zeros_like(size[:, :1]), size.amax(1, keepdim=True)
    for _ in range(40):
        middle = 0.5 * (low + high)
        long = torch.minimum((size - middle).clamp(min=0), room).sum(1, keepdim=True) > eps
        low, high = torch.where(long, middle, low), torch.where(long, high, middle)
    high = torch.where(torch.minimum(size, room).sum(1, keepdim=True) <= eps, 0.0, high)
    return change.sign() * torch.minimum((size - high).clamp(min=0), room)


def project(x_adv: Tensor, x: Tensor, eps: float, projection: Callable[..., Tensor]) -> Tensor:
    """A projection in the shape of images."""
    flat = x.flatten(1)
    change = x_adv.flatten(1) - flat
    room = torch.where(change > 0, 1 - flat, flat)
    return (flat + projection(change, room, eps)).view(x.shape)


def sparse_step(x_adv: Tensor, grad: Tensor, step_size: float) -> Tensor:
    """The move before the projection, with AutoAttack's full sort."""
    flat = grad.flatten(1)
    index = int((1.0 - DENSITY) * flat.shape[1])
    smallest = flat.abs().sort(dim=1)[0][:, index : index + 1]
    sparse = (flat * (flat.abs() >= smallest)).sign()
    move = step_size * sparse / (sparse.abs().sum(1, keepdim=True) + 1e-10)
    return x_adv + move.view(x_adv.shape)


def images(
    shape: tuple[int, ...], dtype: torch.dtype, device: str
) -> tuple[Tensor, Tensor, Tensor]:
    """x_adv outside the ball, grad, x."""
    generator = torch.Generator().manual_seed(0)
    x, grad = torch.rand(shape, generator=generator), torch.randn(shape, generator=generator)
    x_adv = (x + 0.05 * torch.randn(shape, generator=generator)).clamp(0, 1)
    return tuple(value.to(device, dtype) for value in (x_adv, grad, x))  # pyright: ignore


def copies(*values: Tensor) -> Call:
    """Copies that move as many bytes as reading the first ones and writing the last twice."""
    targets = [torch.empty_like(value) for value in values]

    def copy() -> None:
        for target, value in zip(targets, values, strict=True):
            target.copy_(value)

    return copy


def l1_project(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> dict[str, Call]:
    """Every candidate starts from the same point; native pays for one copy more to get there."""
    x_adv, _grad, x = images(shape, dtype, device)
    eps = EPS_SHARE * x[0].numel()
    target = x_adv.clone()
    compiled = torch.compile(lambda a, b: project(a, b, eps, bisected_projection))
    return {
        "native": lambda: ops.l1_project_(target.copy_(x_adv), x, eps=eps),
        "eager": lambda: project(x_adv, x, eps, sorted_projection),
        "inductor": lambda: compiled(x_adv, x),
        "copy": copies(x_adv, x),
    }


def l1_step(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> dict[str, Call]:
    """APGD's step, as long as eps, from the image's edge of the ball."""
    x_adv, grad, x = images(shape, dtype, device)
    eps = EPS_SHARE * x[0].numel()
    target = ops.l1_project_(x_adv, x, eps=eps).clone()

    def eager() -> Tensor:
        return project(sparse_step(x_adv, grad, eps), x, eps, sorted_projection)

    def step() -> Tensor:
        target.copy_(x_adv)
        return ops.l1_step_(target, grad, x, eps=eps, step_size=eps, density=DENSITY)

    return {"native": step, "eager": eager, "copy": copies(x_adv, grad, x)}


def random_start(norm: str) -> Callable[[tuple[int, ...], torch.dtype, str], dict[str, Call]]:
    """Candidates for one norm; eager is torch.rand or torch.randn, and what makes a start of it."""

    def eager(x: Tensor) -> Tensor:
        if norm == "linf":
            return (x + 2 * torch.rand_like(x) - 1).clamp(0, 1)
        if norm == "l2":
            draws = torch.randn_like(x)
            size = draws.flatten(1).norm(dim=1)
        else:
            draws = torch.empty_like(x).exponential_() * torch.randn_like(x).sign()
            size = draws.flatten(1).abs().sum(1)
        radius = torch.rand_like(size) ** (1 / x[0].numel())
        return (x + draws * (radius / size).view(-1, *[1] * (x.ndim - 1))).clamp(0, 1)

    def candidates(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> dict[str, Call]:
        x = images(shape, dtype, device)[2]
        start = getattr(ops, f"{norm}_random_start")
        return {
            "native": lambda: start(x, eps=1.0),
            "eager": lambda: eager(x),
            "copy": copies(x),
        }

    return candidates


CASES = {
    "l1_project_": l1_project,
    "l1_step_": l1_step,
    "linf_random_start": random_start("linf"),
    "l2_random_start": random_start("l2"),
    "l1_random_start": random_start("l1"),
}
