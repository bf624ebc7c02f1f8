"""The way of every op that updates one batch: the short one, the general one, the reference."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from roli_fast.ops import checks, native, reference
from roli_fast.ops.dispatch.memory import (
    Amount,
    addresses_of,
    dense,
    finish,
    fp32,
    plain,
    separate_addresses,
)

Bounds = tuple[float, float]
Launch = Callable[[str, Tensor, Sequence[int], Sequence[Amount], Bounds], None]
"""(kernel, tensor for size and device, addresses of dense memory, fp32 amounts, box)."""


def launch(
    kernel: str,
    target: Tensor,
    addresses: Sequence[int],
    amounts: Sequence[Amount],
    box: Bounds,
    *more: float,
) -> None:
    """What every kernel takes, and `more` where it takes more."""
    size, numbers = native.size(target), native.amounts(*amounts)
    native.run(kernel, target, *addresses, *size, *numbers, *box, *more)


def _launch_summing(
    kernel: str, target: Tensor, addresses: Sequence[int], amounts: Sequence[Amount], box: Bounds
) -> None:
    """A kernel with L2 sums: its slack and, on a GPU, memory for partial sums."""
    samples, length = target.shape[0], target.numel() // target.shape[0]
    slack = reference.rounding_slack(length, *box, target.dtype)
    if not target.is_cuda:
        return launch(kernel, target, addresses, amounts, box, slack, 0)
    size = native.reduction_workspace(samples, length)
    space = torch.empty(size, dtype=torch.float64, device=target.device)
    return launch(kernel, target, addresses, amounts, box, slack, space.data_ptr())


def _launch_l2_projection(
    _: str, target: Tensor, addresses: Sequence[int], amounts: Sequence[Amount], box: Bounds
) -> None:
    """The step's kernel, which only projects where there is no gradient."""
    x_adv, x = addresses
    _launch_summing("l2_step", target, (x_adv, 0, x), (*amounts, 0.0), box)


def _launch_apgd_linf(
    kernel: str, target: Tensor, addresses: Sequence[int], amounts: Sequence[Amount], box: Bounds
) -> None:
    """It shares its arguments with apgd_l2_step and needs neither slack nor memory."""
    launch(kernel, target, addresses, amounts, box, 0.0, 0)


def _launch_fab(
    kernel: str, target: Tensor, addresses: Sequence[int], amounts: Sequence[Amount], box: Bounds
) -> None:
    """One kernel for all norms; its code is that of csrc/ops.h."""
    norm = ("fab_linf_step", "fab_l2_step", "fab_l1_step").index(kernel)
    launch("fab_step", target, addresses, amounts, box, norm)


LAUNCHES: dict[str, Launch] = {
    "linf_step": launch,
    "l1_project": launch,
    "l1_step": launch,
    "l2_project": _launch_l2_projection,
    "l2_step": _launch_summing,
    "fab_linf_step": _launch_fab,
    "fab_l2_step": _launch_fab,
    "fab_l1_step": _launch_fab,
    "apgd_linf_step": _launch_apgd_linf,
    "apgd_l2_step": _launch_summing,
}
"""How each kernel is launched; an op's name is its kernel's with a `_`."""


def _ready(written: Tensor, numbers: Sequence[Amount]) -> bool:
    """Whether a kernel can take the amounts as they are: floats, or fp32 apart from `written`."""
    tensors = [value for value in numbers if type(value) is not float]
    if not tensors:
        return True
    fits = all(type(value) is Tensor and value.dtype is torch.float32 for value in tensors)
    return fits and separate_addresses((written,), tensors) is not None  # pyright: ignore


def update(
    op: str, tensors: dict[str, Tensor], amounts: dict[str, Amount], bounds: Bounds
) -> Tensor:
    """Make the update and return the tensor that is written, the first.

    Types, dtypes, devices and shapes have been checked, memory has not. An amount is a float, or a
    tensor of shape (B,) or (1,).
    """
    kernel, values, numbers = op[:-1], tuple(tensors.values()), tuple(amounts.values())
    written = values[0]
    box = reference.box_limits(*bounds, written.dtype)
    addresses = addresses_of(*values)
    if addresses and _ready(written, numbers) and native.usable(op, written):
        LAUNCHES[kernel](kernel, written, addresses, numbers, box)
        finish(written, written)
        return written
    name, *others = tensors
    checks.writable(name, written)
    checks.apart(name, written, **{other: tensors[other] for other in others}, **amounts)
    if written.numel() == 0:
        return written
    if plain(*values, *numbers) and native.usable(op, written):
        copies = dense(*values)
        pointers = [value.data_ptr() for value in copies]
        LAUNCHES[kernel](kernel, copies[0], pointers, [fp32(n) for n in numbers], box)
        finish(written, copies[0])
    else:
        specified: Callable[..., Tensor] = getattr(reference, kernel)
        written.copy_(specified(**tensors, **amounts, bounds=bounds))
    return written
