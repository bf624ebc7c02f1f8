"""The way of every op that updates one batch: the short one, the general one, the reference."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from roli_fast.ops import checks, native, reference
from roli_fast.ops.dispatch.memory import Amount, addresses_of, dense, finish, fp32, plain

Addresses = Sequence[int]
Launch = Callable[[Tensor, Addresses, Sequence[Amount]], None]
"""Runs a kernel on dense memory: (tensor for size and device, addresses, fp32 amounts)."""


class Update(NamedTuple):
    """One call. The first of `tensors` is written; the others have its shape and dtype."""

    op: str
    tensors: dict[str, Tensor]
    amounts: dict[str, Amount]
    launch: Launch
    reference: Callable[[], Tensor]


def run(update: Update) -> None:
    """Make the update. Types, dtypes, devices and shapes have been checked, memory has not."""
    (name, written), *_ = update.tensors.items()
    tensors, amounts = tuple(update.tensors.values()), tuple(update.amounts.values())
    addresses = addresses_of(*tensors)
    numbers = not any(isinstance(value, Tensor) for value in amounts)
    if addresses and numbers and native.usable(update.op, written):
        update.launch(written, addresses, amounts)
        finish(written, written)
        return
    checks.writable(name, written)
    others = {key: value for key, value in update.tensors.items() if key != name}
    checks.apart(name, written, **others, **update.amounts)
    if written.numel() == 0:
        return
    if plain(*tensors, *amounts) and native.usable(update.op, written):
        copies = dense(*tensors)
        converted = [fp32(value) for value in amounts]
        update.launch(copies[0], [value.data_ptr() for value in copies], converted)
        finish(written, copies[0])
    else:
        written.copy_(update.reference())


def slack_of(tensor: Tensor, box: tuple[float, float]) -> float:
    """What the L2 kernels need to know about rounding to the dtype of `tensor`."""
    return reference.rounding_slack(tensor.numel() // tensor.shape[0], *box, tensor.dtype)


def workspace(tensor: Tensor) -> Tensor | None:
    """Memory for partial sums on a GPU. Keep it until the launch."""
    if not tensor.is_cuda:
        return None
    size = native.reduction_workspace(tensor.shape[0], tensor.numel() // tensor.shape[0])
    return torch.empty(size, dtype=torch.float64, device=tensor.device)
