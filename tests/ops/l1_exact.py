"""The L1 projection and APGD's sparse step, written in another way than in the package."""

import torch
from torch import Tensor


def project(x_adv: Tensor, x: Tensor, eps: float, low: float, high: float) -> Tensor:
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


def autoattack_step(x_adv: Tensor, grad: Tensor, step_size: Tensor, topk: Tensor) -> Tensor:
    """The sparse move of AutoAttack's APGD for L1 before its projection, (B, d)."""
    magnitude = grad.abs().sort(dim=1)[0]
    index = ((1.0 - topk) * grad.shape[1]).clamp(0, grad.shape[1] - 1).long()
    smallest = magnitude.gather(1, index[:, None])
    sparse = grad * (grad.abs() >= smallest).to(grad.dtype)
    count = sparse.sign().abs().sum(1, keepdim=True)
    return x_adv + step_size[:, None] * sparse.sign() / (count + 1e-10)
