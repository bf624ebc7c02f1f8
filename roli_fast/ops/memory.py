"""What a tensor is made of: plain memory or not, and in which layout."""

from collections.abc import Sequence
from operator import itemgetter

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from roli_fast.ops import checks

Amount = float | Tensor
_first = itemgetter(0)


def addresses_of(written: Tensor, *others: Tensor) -> tuple[int, ...] | None:
    """The memory addresses in the usual case: nothing to copy, convert or complain about.

    The usual case: plain, contiguous, not empty, without shared memory, not of inference mode. The
    tensors have one dtype and one shape.
    """
    for value in (written, *others):
        if type(value) is not Tensor or not value.is_contiguous() or value.is_neg():
            return None
    if written.is_inference():
        return None
    try:
        own, *rest = [value.data_ptr() for value in (written, *others)]
    except RuntimeError:  # wrapped by torch.func
        return None
    size = written.nbytes
    if own == 0 or size == 0:
        return None
    for address in rest:
        if address == 0 or abs(own - address) < size:
            return None
    return own, *rest


def separate_addresses(written: Sequence[Tensor], others: Sequence[Tensor]) -> list[int] | None:
    """The same for several tensors that are written: sizes may differ, nothing is shared at all."""
    values = (*written, *others)
    for value in values:
        if type(value) is not Tensor or not value.is_contiguous() or value.is_neg():
            return None
    if any(value.is_inference() for value in written):
        return None
    try:
        addresses = [value.data_ptr() for value in values]
    except RuntimeError:  # wrapped by torch.func
        return None
    free = 1  # the first address that no tensor so far takes
    for address, value in sorted(zip(addresses, values, strict=True), key=_first):
        size = value.nbytes
        if address < free or size == 0:
            return None
        free = address + size
    return addresses


def plain(*values: object) -> bool:
    """Whether every tensor is a torch.Tensor proper whose memory holds its values."""
    return all(
        type(value) is Tensor and not value.is_neg() and checks.address(value) != 0
        for value in values
        if isinstance(value, Tensor)
    )


def dense(written: Tensor, *others: Tensor) -> list[Tensor]:
    """All of them in one dense layout: copies of those that are not in `written`'s.

    `written` itself is copied if its own layout is not dense.
    """
    layout = layout_of(written)
    return [value.contiguous(memory_format=layout) for value in (written, *others)]


def finish(written: Tensor, target: Tensor) -> None:
    """After a kernel wrote `target`: bring it to `written`, and tell autograd of the change."""
    if target is not written:
        written.copy_(target)
    elif not written.is_inference():
        increment_version(written)


def layout_of(tensor: Tensor) -> torch.memory_format:
    """The dense layout to work in: the tensor's own if it has one, else contiguous.

    Strides are not compared: those of (B, 1, 8, 8) may differ between equal layouts.
    """
    if tensor.dim() != 4 or tensor.is_contiguous():
        return torch.contiguous_format
    if tensor.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def fp32(amount: Amount) -> Amount:
    """What a kernel reads: a number, or contiguous fp32. Keep the result until the launch."""
    return amount.to(torch.float32).contiguous() if isinstance(amount, Tensor) else amount
