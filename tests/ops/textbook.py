"""The L2 and APGD updates as the literature writes them, in fp64 and without care for rounding."""

import torch
from torch import Tensor


def column(value, x: Tensor) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64).reshape(-1, *[1] * (x.ndim - 1))


def norm(value: Tensor) -> Tensor:
    return column(value.flatten(1).norm(dim=1), value)


def l2_project(x_adv: Tensor, x: Tensor, *, eps, bounds=(0.0, 1.0)) -> Tensor:
    x_adv, x = x_adv.double(), x.double()
    length = norm(x_adv - x)
    scale = torch.where(length > column(eps, x), column(eps, x) / length, 1.0)
    return (x + (x_adv - x) * scale).clamp(*bounds)


def direction(grad: Tensor) -> Tensor:
    grad = torch.where(grad.isfinite(), grad, 0).double()
    return torch.where(norm(grad) > 0, grad / norm(grad), 0.0)


def l2_step(x_adv: Tensor, grad: Tensor, x: Tensor, *, eps, step_size, bounds=(0.0, 1.0)) -> Tensor:
    moved = x_adv.double() + column(step_size, x) * direction(grad)
    return l2_project(moved, x, eps=eps, bounds=bounds)


def linf_project(x_adv: Tensor, x: Tensor, *, eps, bounds=(0.0, 1.0)) -> Tensor:
    limit = column(eps, x)
    return (x.double() + (x_adv.double() - x.double()).clamp(-limit, limit)).clamp(*bounds)


def apgd_step(  # noqa: PLR0913 - the step's own quantities
    norm_name: str, x_adv, x_prev, grad, x, *, eps, step_size, momentum, bounds=(0.0, 1.0)
) -> Tensor:
    """Croce & Hein 2020, Algorithm 1, line 7."""
    project = {"linf": linf_project, "l2": l2_project}[norm_name]
    slope = torch.where(grad.isfinite(), grad, 0).double()
    way = slope.sign() if norm_name == "linf" else direction(grad)
    wide, a = x_adv.double(), column(momentum, x)
    u = project(wide + column(step_size, x) * way, x, eps=eps, bounds=bounds)
    point = wide + a * (u - wide) + (1 - a) * (wide - x_prev.double())
    return project(point, x, eps=eps, bounds=bounds)
