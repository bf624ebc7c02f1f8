"""APGD for a single image, written from the papers in plain fp64 torch: slow and without state."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

Gradient = Callable[[Tensor], tuple[Tensor, float]]


def of_model(model: Callable[[Tensor], Tensor], y: Tensor) -> Gradient:
    """Gradient and loss of the cross-entropy at one image, without its batch dimension."""

    def gradient(x: Tensor) -> tuple[Tensor, float]:
        leaf = x[None].clone().requires_grad_(True)
        loss = cross_entropy(model(leaf), y[None])
        (grad,) = torch.autograd.grad(loss, leaf)
        return grad[0], loss.item()

    return gradient


def project(point: Tensor, x: Tensor, eps: float, norm: str) -> Tensor:
    """Onto the ball and into [0, 1]: in l2 one after the other, in l1 exactly onto both."""
    delta = point - x
    if norm == "linf":
        return (x + delta.clamp(-eps, eps)).clamp(0, 1)
    if norm == "l2":
        return (x + delta * min(1.0, eps / max(delta.norm().item(), 1e-300))).clamp(0, 1)
    room = torch.where(delta > 0, 1 - x, x)
    low, high = 0.0, delta.abs().max().item()

    def shrunk(threshold: float) -> Tensor:
        return torch.minimum((delta.abs() - threshold).clamp(min=0), room)

    if shrunk(0.0).sum() > eps:
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (middle, high) if shrunk(middle).sum() > eps else (low, middle)
    else:
        high = 0.0
    left = shrunk(high)
    return x + delta.sign() * torch.where(left < 1e-12, 0.0, left)  # what bisection leaves of 0


def sparse(grad: Tensor, density: float) -> Tensor:
    """Signs of the entries whose magnitude is at least the (1 - density) quantile's."""
    size = grad.abs().flatten()
    smallest = size.sort().values[min(int((1 - density) * len(size)), len(size) - 1)]
    return torch.where(grad.abs() >= smallest, grad.sign(), 0.0)


def apgd(
    gradient: Gradient, x: Tensor, start: Tensor, eps: float, norm: str, steps: int
) -> tuple[list[Tensor], Tensor]:
    """All iterates, and the one of highest loss."""
    climb = climb_l1 if norm == "l1" else climb_with_momentum
    return climb(gradient, x, start, eps, norm, steps)


def climb_with_momentum(
    gradient: Gradient, x: Tensor, start: Tensor, eps: float, norm: str, steps: int
) -> tuple[list[Tensor], Tensor]:
    """Algorithm 1 of arXiv:2003.01690; a first loss counts as an increase where it is above 0."""
    here, before, size = start, start, 2 * eps
    grad, loss = gradient(start)
    best = (loss, start, grad)
    losses, iterates = [0.0], [start]
    period, look, halved, best_before = max(int(0.22 * steps), 1), 0, True, loss
    look = period
    for step in range(1, steps + 1):
        direction = grad.sign() if norm == "linf" else grad / grad.norm()
        u = project(here + size * direction, x, eps, norm)
        a = 1.0 if step == 1 else 0.75
        here, before = (
            project(here + a * (u - here) + (1 - a) * (here - before), x, eps, norm),
            here,
        )
        iterates.append(here)
        grad, loss = gradient(here)
        losses.append(loss)
        if loss > best[0]:
            best = (loss, here, grad)
        if step == look:
            recent = losses[-period - 1 :]
            increases = sum(b > a for a, b in zip(recent, recent[1:], strict=False))
            few = increases <= 0.75 * period
            halved, best_before = few or (not halved and best_before >= best[0]), best[0]
            if halved:
                size, here, grad = size / 2, best[1], best[2]
            period = max(period - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1))
            look += period
    return iterates, best[1]


def climb_l1(
    gradient: Gradient, x: Tensor, start: Tensor, eps: float, norm: str, steps: int
) -> tuple[list[Tensor], Tensor]:
    """Section 4.1 of arXiv:2103.01208, from a density of 20 %."""
    here, size, density, changed = start, eps, 0.2, x.numel()
    grad, loss = gradient(start)
    best, iterates = (loss, start, grad), [start]
    for step in range(1, steps + 1):
        move = sparse(grad, density)
        here = project(here + size * move / move.abs().sum(), x, eps, norm)
        iterates.append(here)
        grad, loss = gradient(here)
        if loss > best[0]:
            best = (loss, here, grad)
        if step % max(int(0.04 * steps), 1) == 0:
            now = int((best[1] != x).sum())
            density = now / x.numel() / 1.5
            if now / changed < 0.95:
                size, here, grad = eps, best[1], best[2]
            else:
                size = max(size / 1.5, eps / 10)
            changed = now
    return iterates, best[1]
