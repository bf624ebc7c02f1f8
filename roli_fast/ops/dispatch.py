"""Takes checked arguments to a kernel where there is one, and to the reference otherwise."""

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from roli_fast.ops import checks, native, reference

Amount = float | Tensor


def linf_step_(  # noqa: PLR0913 - the op's own arguments
    x_adv: Tensor,
    grad: Tensor,
    x: Tensor,
    eps: Amount,
    step_size: Amount,
    bounds: tuple[float, float],
) -> None:
    """Update `x_adv`. Types, dtypes, devices and shapes have been checked, memory has not.

    `eps` and `step_size`: a float, or a tensor of shape (B,) or (1,).
    """
    box = reference.box_limits(bounds[0], bounds[1], x_adv.dtype)
    addresses = _addresses(x_adv, grad, x)
    if addresses and type(eps) is type(step_size) is float and native.usable("linf_step_", x_adv):
        native.linf_step_(x_adv, addresses, eps, step_size, box)
        increment_version(x_adv)
        return
    checks.writable(x_adv)
    checks.apart(x_adv, grad=grad, x=x, eps=eps, step_size=step_size)
    if x_adv.numel() == 0:
        return
    if _plain(x_adv, grad, x, eps, step_size) and native.usable("linf_step_", x_adv):
        _rearranged_linf_step_(x_adv, grad, x, eps, step_size, box)
    else:
        result = reference.linf_step(x_adv, grad, x, eps=eps, step_size=step_size, bounds=bounds)
        x_adv.copy_(result)


def _addresses(x_adv: Tensor, grad: Tensor, x: Tensor) -> tuple[int, int, int] | None:
    """Three memory addresses in the usual case: nothing to copy, convert or complain about.

    The usual case: plain, contiguous, not empty, without shared memory, not of inference mode.
    """
    if not (
        type(x_adv) is type(grad) is type(x) is Tensor
        and x_adv.is_contiguous()
        and grad.is_contiguous()
        and x.is_contiguous()
        and not (x_adv.is_neg() or grad.is_neg() or x.is_neg() or x_adv.is_inference())
    ):
        return None
    try:
        addresses = x_adv.data_ptr(), grad.data_ptr(), x.data_ptr()
    except RuntimeError:  # wrapped by torch.func
        return None
    size = x_adv.nbytes
    apart = (
        abs(addresses[0] - addresses[1]) >= size > 0 and abs(addresses[0] - addresses[2]) >= size
    )
    return addresses if apart and 0 not in addresses else None


def _plain(*values: object) -> bool:
    """Whether every tensor is a torch.Tensor proper whose memory holds its values."""
    return all(
        type(value) is Tensor and not value.is_neg() and checks.address(value) != 0
        for value in values
        if isinstance(value, Tensor)
    )


def _rearranged_linf_step_(  # noqa: PLR0913 - the op's own arguments
    x_adv: Tensor,
    grad: Tensor,
    x: Tensor,
    eps: Amount,
    step_size: Amount,
    box: tuple[float, float],
) -> None:
    """The kernel on plain tensors of any strides: copies whatever is not in `x_adv`'s layout."""
    layout = _layout(x_adv)
    target, grad, x = (value.contiguous(memory_format=layout) for value in (x_adv, grad, x))
    addresses = target.data_ptr(), grad.data_ptr(), x.data_ptr()
    native.linf_step_(target, addresses, _fp32(eps), _fp32(step_size), box)
    if target is not x_adv:
        x_adv.copy_(target)
    elif not x_adv.is_inference():
        increment_version(x_adv)


def _layout(tensor: Tensor) -> torch.memory_format:
    """The dense layout to work in: the tensor's own if it has one, else contiguous.

    Strides are not compared: those of (B, 1, 8, 8) may differ between equal layouts.
    """
    if tensor.dim() != 4 or tensor.is_contiguous():
        return torch.contiguous_format
    if tensor.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def _fp32(amount: Amount) -> Amount:
    """What the kernel reads: a number, or contiguous fp32."""
    return amount.to(torch.float32).contiguous() if isinstance(amount, Tensor) else amount
