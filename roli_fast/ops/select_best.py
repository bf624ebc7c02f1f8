"""The op that keeps the best iterate of each sample."""

from collections.abc import Sequence

import torch
from torch import Tensor

from roli_fast.ops import fused, native

NAMES = ("best_x", "best_grad", "best_loss", "x_adv", "grad", "loss")
"""The arguments; the first three are written."""


def select_best_(
    best_x: Tensor, best_grad: Tensor, best_loss: Tensor, x_adv: Tensor, grad: Tensor, loss: Tensor
) -> Tensor:
    """Keep, sample by sample, the iterate of the highest loss, with its gradient, in place.

    Where loss > best_loss, `x_adv`, `grad` and `loss` are copied to `best_x`, `best_grad` and
    `best_loss`: lines 9 and 10 of Algorithm 1 in Croce & Hein 2020 (arXiv:2003.01690). One pass, in
    which only samples that improved are read, and no wait for the device. An equal loss does not
    win, a NaN loss never does, and any number wins against a NaN `best_loss`; start with -inf.

    Contiguous and channels_last tensors are read and written where they are, each pair in the
    layout of the tensor that is written; other strides cost a copy. Rows are copied bit for bit.

    Args:
        best_x: the best iterates so far, shape (B, ...), fp32, bf16, fp16 or fp64; written.
        best_grad: their gradients, same shape, dtype and device; written.
        best_loss: their losses, shape (B,), any of these dtypes, same device; written.
        x_adv: the new iterates, shaped as `best_x`.
        grad: their gradients, likewise.
        loss: their losses, shape and dtype of `best_loss`.

    Returns:
        Which samples improved: a new bool tensor (B,).

    Raises:
        ArgumentTypeError: an argument has a wrong type, dtype or device.
        ArgumentError: a wrong shape; a written tensor shares memory with another argument; grad
            mode is on and an argument requires grad.
    """
    values, watched = (best_x, best_grad, best_loss, x_adv, grad, loss), native.watched()
    addresses = None if watched else _usual(*values)
    if addresses is None:
        _check(*values)
        if torch.is_grad_enabled():
            fused.check_no_autograd(**dict(zip(NAMES, values, strict=True)))
    if watched and fused.can_be_followed(best_x, best_grad, best_loss):
        return select_best_op(*values)
    return _select(values, addresses)


def reference(*tensors: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What `select_best_` writes into its first three arguments, and what it returns.

    Better are losses that are larger numbers, or numbers that replace a NaN.
    """
    best_x, best_grad, best_loss, x_adv, grad, loss = tensors
    better = ~torch.isnan(loss) & ~(loss <= best_loss)
    rows = better.reshape(-1, *[1] * (x_adv.ndim - 1))
    images, grads = torch.where(rows, x_adv, best_x), torch.where(rows, grad, best_grad)
    return images, grads, torch.where(better, loss, best_loss), better


def _usual(*values: Tensor) -> list[int] | None:
    """Addresses of the arguments where a kernel takes them as they are, else None."""
    best_x, best_grad, best_loss, x_adv, grad, loss = values
    if type(best_x) is not Tensor or not best_x.ndim:
        return None
    if not native.has_kernel("select_best_", best_x):
        return None
    images = fused.addresses_of((best_x, best_grad, x_adv, grad), best_x)
    if images is None or type(best_loss) is not Tensor or best_loss.dtype not in native.CODES:
        return None
    losses = fused.addresses_of((best_loss, loss), best_x, best_loss.dtype, best_x.shape[:1])
    if losses is None or any(value.is_inference() for value in values[:3]):
        return None
    size = best_x.nbytes
    spans = sorted([*((at, size) for at in images), *((at, best_loss.nbytes) for at in losses)])
    for (first, length), (second, _) in zip(spans, spans[1:], strict=False):
        if first + length > second:
            return None
    return [*images[:2], losses[0], *images[2:], losses[1]]


def _check(best_x: Tensor, best_grad: Tensor, best_loss: Tensor, *new: Tensor) -> None:
    """Iterates, gradients and losses of one batch: (B, ...), the same, (B,)."""
    fused.check_batch("best_x", best_x)
    for name, value in zip(("best_grad", "x_adv", "grad"), (best_grad, *new[:2]), strict=True):
        fused.check_like(name, value, best_x)
    fused.check_tensor("best_loss", best_loss, shape=best_x.shape[:1], device=best_x.device)
    fused.check_like("loss", new[2], best_loss)


def _select(values: Sequence[Tensor], addresses: list[int] | None = None) -> Tensor:
    """Update the first three from the others; returns which samples improved, (B,), bool.

    Arguments have been checked, their memory has not but for that of `addresses`.
    """
    best_x, best_loss, dense = values[0], values[2], values
    if addresses is None:
        for place, name in enumerate(NAMES[:3]):
            fused.check_apart(name, **dict(zip(NAMES[place:], values[place:], strict=True)))
        plain = best_x.numel() and fused.plain(*values)
        if not (plain and native.usable("select_best_", best_x)):
            *results, better = reference(*values)
            for target, result in zip(values, results, strict=False):
                target.copy_(result)
            return better
        layouts = [fused.layout_of(value) for value in values[:3]] * 2
        dense = [v.contiguous(memory_format=m) for v, m in zip(values, layouts, strict=True)]
        addresses = [value.data_ptr() for value in dense]
    better = torch.empty(best_loss.shape, dtype=torch.bool, device=best_loss.device)
    samples, code = best_x.shape[0], native.CODES[best_loss.dtype]
    sizes = (samples, best_x.nbytes // samples, code)
    native.run("select_best", best_x, *addresses, better.data_ptr(), *sizes)
    for value, target in zip(values[:3], dense, strict=False):
        fused.finish(value, target)
    return better


@torch.library.custom_op("roli_fast::select_best_", mutates_args=NAMES[:3])
def select_best_op(
    best_x: Tensor, best_grad: Tensor, best_loss: Tensor, x_adv: Tensor, grad: Tensor, loss: Tensor
) -> Tensor:
    """`ops.select_best_` without the check that autograd is off."""
    values = (best_x, best_grad, best_loss, x_adv, grad, loss)
    _check(*values)
    return _select(values)


@select_best_op.register_fake
def _(*values: Tensor) -> Tensor:
    _check(*values)
    return torch.empty_like(values[5], dtype=torch.bool, memory_format=torch.contiguous_format)
