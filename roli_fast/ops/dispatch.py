"""Takes checked arguments to a kernel where there is one, and to the reference otherwise."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from roli_fast.ops import checks, native, reference


class Amounts(NamedTuple):
    """What an Linf step is told: numbers, or tensors of shape (B,) or (1,)."""

    eps: float | Tensor
    step_size: float | Tensor


def linf_step_(
    x_adv: Tensor, grad: Tensor, x: Tensor, amounts: Amounts, bounds: tuple[float, float]
) -> None:
    """Update `x_adv`. Types, dtypes, devices and shapes have been checked, memory has not."""
    box = reference.box_limits(bounds[0], bounds[1], x_adv.dtype)
    checks.writable(x_adv)
    checks.apart(x_adv, grad=grad, x=x, eps=amounts.eps, step_size=amounts.step_size)
    if x_adv.numel() == 0:
        return
    if not (_plain(x_adv, grad, x, *amounts) and native.usable("linf_step_", x_adv)):
        result = reference.linf_step(x_adv, grad, x, **amounts._asdict(), bounds=bounds)
        x_adv.copy_(result)
        return
    layout = _layout(x_adv)
    target = _arranged(x_adv, layout)
    eps, step_size = _fp32(amounts.eps), _fp32(amounts.step_size)
    native.linf_step_(target, _arranged(grad, layout), _arranged(x, layout), eps, step_size, box)
    if target is not x_adv:
        x_adv.copy_(target)
    elif not x_adv.is_inference():
        increment_version(x_adv)


def _plain(*values: object) -> bool:
    """Whether every tensor is a torch.Tensor proper whose memory holds its values."""
    for value in values:
        if type(value) is Tensor:
            if value.is_neg() or not _has_memory(value):
                return False
        elif isinstance(value, Tensor):
            return False
    return True


def _has_memory(tensor: Tensor) -> bool:
    """False for torch's zero tensors, which look contiguous, and inside torch.func transforms."""
    try:
        return tensor.data_ptr() != 0
    except RuntimeError:
        return False


def _layout(tensor: Tensor) -> torch.memory_format:
    """The dense layout to work in: the tensor's own if it has one, else contiguous.

    Strides are not compared: those of (B, 1, 8, 8) may differ between equal layouts.
    """
    if tensor.is_contiguous() or tensor.dim() != 4:
        return torch.contiguous_format
    if tensor.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def _arranged(tensor: Tensor, layout: torch.memory_format) -> Tensor:
    """`tensor` itself if it is in `layout`, otherwise a copy that is."""
    return tensor.contiguous(memory_format=layout)


def _fp32(amount: float | Tensor) -> float | Tensor:
    """What the kernel reads: a number, or contiguous fp32."""
    return amount.to(torch.float32).contiguous() if isinstance(amount, Tensor) else amount
