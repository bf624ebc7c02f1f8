"""The truth for the ops, written in another way than in the package.

`linf_step` in fractions; the L2 and APGD updates as the literature writes them; the L1 projection
by sorting. All but the first are in fp64 and without care for rounding.
"""

from fractions import Fraction

import torch
from torch import Tensor

# dtype -> (significant bits, exponent of the smallest normal number)
FORMATS = {
    torch.float64: (53, -1022),
    torch.float32: (24, -126),
    torch.float16: (11, -14),
    torch.bfloat16: (8, -126),
}


def spacing(value: Fraction, dtype: torch.dtype) -> Fraction:
    """The distance between neighbours of `dtype` in the binade of `value`."""
    digits, smallest = FORMATS[dtype]
    exponent = value.numerator.bit_length() - value.denominator.bit_length()
    if abs(value) < Fraction(2) ** exponent:  # the bit lengths leave two candidates
        exponent -= 1
    return Fraction(2) ** (max(exponent, smallest) - digits + 1)


def floor(value: Fraction, dtype: torch.dtype) -> Fraction:
    """The largest number of `dtype` that is <= value."""
    step = spacing(value, dtype)
    return (value / step).__floor__() * step


def ceil(value: Fraction, dtype: torch.dtype) -> Fraction:
    """The smallest number of `dtype` that is >= value."""
    return -floor(-value, dtype)


def nearest(value: Fraction, dtype: torch.dtype) -> Fraction:
    """The nearest number of `dtype`, ties to even."""
    step = spacing(value, dtype)
    return round(value / step) * step  # Python rounds fractions half to even


def linf_step(x_adv, grad, x, *, eps, step_size, bounds, dtype) -> float:
    """One element of `ops.linf_step_`, from finite numbers of `dtype`."""
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    radius, size = nearest(Fraction(eps), wide), nearest(Fraction(step_size), wide)
    sign = (grad > 0) - (grad < 0)
    value = nearest(nearest(Fraction(x_adv) + sign * size, wide), dtype)
    value = max(value, ceil(Fraction(x) - radius, dtype))
    value = min(value, floor(Fraction(x) + radius, dtype))
    low, high = (nearest(nearest(Fraction(end), wide), dtype) for end in bounds)
    return float(min(max(value, low), high))


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


SPHERES = {
    "l2_project_": l2_project,
    "l2_step_": l2_step,
    "apgd_linf_step_": lambda prev, adv, *rest, **o: apgd_step("linf", adv, prev, *rest, **o),
    "apgd_l2_step_": lambda prev, adv, *rest, **o: apgd_step("l2", adv, prev, *rest, **o),
}
"""Op -> its formula, tensors as in `cases.Op`."""


def l1_project(x_adv: Tensor, x: Tensor, eps: float, low: float, high: float) -> Tensor:
    """One sample, flat, in fp64: sort the breakpoints of the length as a function of the threshold.

    Between two neighbouring breakpoints the length is linear, so the threshold is known exactly.
    """
    x_adv, x = x_adv.double(), x.double()
    change = x_adv - x
    size, sign = change.abs(), change.sign()
    room = torch.where(sign > 0, high - x, x - low)

    def length(threshold: float) -> float:
        return torch.minimum((size - threshold).clamp(min=0), room).sum().item()

    if length(0.0) <= eps:
        return x + sign * torch.minimum(size, room)
    points = (
        torch.cat([torch.zeros(1).double(), size, (size - room).clamp(min=0)]).unique().tolist()
    )
    first, last = 0, len(points) - 1  # length(points[first]) > eps >= length(points[last])
    while last - first > 1:
        middle = (first + last) // 2
        first, last = (middle, last) if length(points[middle]) > eps else (first, middle)
    above, below = length(points[first]), length(points[last])
    part = (above - eps) / (above - below)
    threshold = points[first] + part * (points[last] - points[first])
    return x + sign * torch.minimum((size - threshold).clamp(min=0), room)


def l1_autoattack_step(x_adv: Tensor, grad: Tensor, step_size: Tensor, topk: Tensor) -> Tensor:
    """The sparse move of AutoAttack's APGD for L1 before its projection, (B, d)."""
    magnitude = grad.abs().sort(dim=1)[0]
    index = ((1.0 - topk) * grad.shape[1]).clamp(0, grad.shape[1] - 1).long()
    smallest = magnitude.gather(1, index[:, None])
    sparse = grad * (grad.abs() >= smallest).to(grad.dtype)
    count = sparse.sign().abs().sum(1, keepdim=True)
    return x_adv + step_size[:, None] * sparse.sign() / (count + 1e-10)
