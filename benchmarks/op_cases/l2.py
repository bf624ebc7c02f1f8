"""What L2 ops, APGD's steps and select_best_ are timed against, for benchmarks/groups/ops.py."""

from collections.abc import Callable

import torch
from torch import Tensor

from roli_fast import ops

EPS, LINF_EPS = 3.0, 8 / 255
ROUNDS = 15  # APGD in eager mode takes most of a second
Call = Callable[[], object]
TARGETS = {
    "l2_step_ 64x3x224x224": {"copy": 1 / 1.8},
    "apgd_linf_step_ 64x3x224x224": {"eager": 20.0},
}


def norms(value: Tensor) -> Tensor:
    """(B, 1, 1, 1), as every attack library shapes them."""
    return value.flatten(1).norm(p=2, dim=1).view(-1, *[1] * (value.ndim - 1))


def l2_step_eager(x_adv: Tensor, grad: Tensor, x: Tensor) -> Tensor:
    """PGD's step as torchattacks writes it (PGDL2)."""
    grad = grad / (norms(grad) + 1e-10)
    adv_images = x_adv.detach() + 0.2 * EPS * grad
    delta = adv_images - x
    factor = torch.min(EPS / norms(delta), torch.ones_like(norms(delta)))
    return torch.clamp(x + delta * factor, min=0, max=1).detach()


def l2_project_eager(x_adv: Tensor, x: Tensor) -> Tensor:
    """The projection inside of it."""
    delta = x_adv - x
    factor = torch.min(EPS / norms(delta), torch.ones_like(norms(delta)))
    return torch.clamp(x + delta * factor, min=0, max=1)


def apgd_linf_eager(x_adv: Tensor, x_prev: Tensor, grad: Tensor, x: Tensor, step: Tensor) -> Tensor:
    """APGD's step as AutoAttack writes it, Linf."""
    grad2 = x_adv - x_prev
    moved = x_adv + step * torch.sign(grad)
    moved = torch.clamp(torch.min(torch.max(moved, x - LINF_EPS), x + LINF_EPS), 0.0, 1.0)
    moved = x_adv + (moved - x_adv) * 0.75 + grad2 * 0.25
    return torch.clamp(torch.min(torch.max(moved, x - LINF_EPS), x + LINF_EPS), 0.0, 1.0)


def apgd_l2_eager(x_adv: Tensor, x_prev: Tensor, grad: Tensor, x: Tensor, step: Tensor) -> Tensor:
    """APGD's step as AutoAttack writes it, L2."""

    def project(value: Tensor) -> Tensor:
        delta = value - x
        size = torch.min(EPS * torch.ones_like(x), norms(delta))
        return torch.clamp(x + delta / (norms(delta) + 1e-12) * size, 0.0, 1.0)

    grad2 = x_adv - x_prev
    moved = project(x_adv + step * grad / (norms(grad) + 1e-12))
    return project(x_adv + (moved - x_adv) * 0.75 + grad2 * 0.25)


def batch(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> list[Tensor]:
    """x_adv and x_prev, outside the ball at first, grad, x."""
    generator = torch.Generator().manual_seed(0)
    x, grad = torch.rand(shape, generator=generator), torch.randn(shape, generator=generator)
    noise = [0.02 * torch.randn(shape, generator=generator) for _ in range(2)]
    values = [*((x + part).clamp(0, 1) for part in noise), grad, x]
    return [value.to(device, dtype) for value in values]


def copies(x: Tensor, count: float) -> Call:
    """As many bytes as `count` copies of x move, in memory of their own."""
    whole = [(torch.empty_like(x), x.clone()) for _ in range(int(count))]
    half = [(torch.empty_like(x[::2]), x[::2].clone())] if count % 1 else []

    def copy() -> None:
        for target, source in whole + half:
            target.copy_(source)

    return copy


def l2_project(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> dict[str, Call]:
    """Native works on its own result, which costs the same as an outside point."""
    x_adv, _, _, x = batch(shape, dtype, device)
    target, compiled = x_adv.clone(), torch.compile(l2_project_eager)
    return {
        "native": lambda: ops.l2_project_(target, x, eps=EPS),
        "eager": lambda: l2_project_eager(x_adv, x),
        "inductor": lambda: compiled(x_adv, x),
        "copy": copies(x, 1.5),
    }


def l2_step(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> dict[str, Call]:
    """A step of 0.2 eps; native walks on, along the sphere."""
    x_adv, _, grad, x = batch(shape, dtype, device)
    target, compiled = x_adv.clone(), torch.compile(l2_step_eager)
    return {
        "native": lambda: ops.l2_step_(target, grad, x, eps=EPS, step_size=0.2 * EPS),
        "eager": lambda: l2_step_eager(x_adv, grad, x),
        "inductor": lambda: compiled(x_adv, grad, x),
        "copy": copies(x, 2),
    }


def apgd(op: str, formula: Callable[..., Tensor], eps: float) -> Callable[..., dict[str, Call]]:
    """A step of per-sample sizes with momentum 0.75."""

    def candidates(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> dict[str, Call]:
        x_adv, x_prev, grad, x = batch(shape, dtype, device)
        sizes = torch.full((shape[0],), 2 * eps, device=device)
        step = sizes.to(dtype).view(-1, 1, 1, 1)
        target, compiled = x_prev.clone(), torch.compile(formula)
        options = {"eps": eps, "step_size": sizes, "momentum": 0.75}
        return {
            "native": lambda: getattr(ops, op)(x_adv, target, grad, x, **options),
            "eager": lambda: formula(x_adv, x_prev, grad, x, step),
            "inductor": lambda: compiled(x_adv, x_prev, grad, x, step),
            "copy": copies(x, 2.5),
        }

    return candidates


def select_best(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> dict[str, Call]:
    """Every second sample improves, every time; eager as AutoAttack writes it."""
    best_x, x_adv, best_grad, grad = batch(shape, dtype, device)
    loss = torch.arange(shape[0], device=device) % 2 - 0.5
    best_loss = torch.zeros_like(loss)

    def native() -> Tensor:
        best_loss.zero_()
        return ops.select_best_(best_x, best_grad, best_loss, x_adv, grad, loss)

    def eager() -> None:
        best_loss.zero_()
        ind = (loss > best_loss).nonzero().squeeze()
        best_x[ind] = x_adv[ind].clone()
        best_grad[ind] = grad[ind].clone()
        best_loss[ind] = loss[ind] + 0

    return {"native": native, "eager": eager, "copy": copies(x_adv, 1)}


CASES = {
    "l2_project_": l2_project,
    "l2_step_": l2_step,
    "apgd_linf_step_": apgd("apgd_linf_step_", apgd_linf_eager, LINF_EPS),
    "apgd_l2_step_": apgd("apgd_l2_step_", apgd_l2_eager, EPS),
    "select_best_": select_best,
}
