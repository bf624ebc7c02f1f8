"""The op that keeps the best iterate of each sample."""

import torch
from torch import Tensor

from roli_fast.ops import checks, native
from roli_fast.ops.checks import addresses_of, finish, layout_of, plain

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
    values = (best_x, best_grad, best_loss, x_adv, grad, loss)
    tensors = dict(zip(NAMES, values, strict=True))
    _check(**tensors)
    if torch.is_grad_enabled():
        checks.no_autograd(**tensors)
    if checks.seen(**tensors) and checks.can_be_written(best_x, best_grad, best_loss):
        return select_best_op(*values)
    return _select(**tensors)


def reference(*tensors: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What `select_best_` writes into its first three arguments, and what it returns."""
    best_x, best_grad, best_loss, x_adv, grad, loss = tensors
    better = improved(best_loss, loss)
    rows = better.reshape(-1, *[1] * (x_adv.ndim - 1))
    images, grads = torch.where(rows, x_adv, best_x), torch.where(rows, grad, best_grad)
    return images, grads, torch.where(better, loss, best_loss), better


def improved(best_loss: Tensor, loss: Tensor) -> Tensor:
    """Which losses are better: numbers that are larger, or that replace a NaN. (B,), bool."""
    return ~torch.isnan(loss) & ~(loss <= best_loss)


def _check(best_x: Tensor, best_loss: Tensor, loss: Tensor, **images: Tensor) -> None:
    """Iterates, gradients and losses of one batch: (B, ...), the same, (B,)."""
    checks.batch("best_x", best_x)
    for name, value in images.items():
        checks.same_kind(name, value, best_x)
    checks.tensor("best_loss", best_loss, shape=best_x.shape[:1], device=best_x.device)
    checks.same_kind("loss", loss, best_loss)


def _select(**tensors: Tensor) -> Tensor:
    """Update the first three from the others; returns which samples improved, (B,), bool.

    Types, dtypes, devices and shapes have been checked, memory has not.
    """
    values = [tensors[name] for name in NAMES]
    addresses = addresses_of(values[:3], values[3:])
    if addresses is None:
        for place, name in enumerate(NAMES[:3]):
            checks.writable(name, tensors[name])
            checks.apart(name, tensors[name], **{n: tensors[n] for n in NAMES[place + 1 :]})
    best_x, best_loss = values[0], values[2]
    known = addresses is not None or (best_x.numel() and plain(*values))
    if not known or not native.usable("select_best_", best_x):
        *results, better = reference(*values)
        for target, result in zip(values, results, strict=False):
            target.copy_(result)
        return better
    dense = values
    if addresses is None:
        layouts = [layout_of(value) for value in values[:3]] * 2
        dense = [v.contiguous(memory_format=m) for v, m in zip(values, layouts, strict=True)]
        addresses = [value.data_ptr() for value in dense]
    better = torch.empty(best_loss.shape, dtype=torch.bool, device=best_loss.device)
    addresses.insert(3, better.data_ptr())
    samples, code = best_x.shape[0], native.CODES[best_loss.dtype]
    native.run("select_best", best_x, *addresses, samples, best_x.nbytes // samples, code)
    for value, target in zip(values[:3], dense, strict=False):
        finish(value, target)
    return better


@torch.library.custom_op("roli_fast::select_best_", mutates_args=NAMES[:3])
def select_best_op(
    best_x: Tensor, best_grad: Tensor, best_loss: Tensor, x_adv: Tensor, grad: Tensor, loss: Tensor
) -> Tensor:
    """`ops.select_best_` without the check that autograd is off."""
    values = (best_x, best_grad, best_loss, x_adv, grad, loss)
    tensors = dict(zip(NAMES, values, strict=True))
    _check(**tensors)
    return _select(**tensors)


@select_best_op.register_fake
def _(*values: Tensor) -> Tensor:
    _check(**dict(zip(NAMES, values, strict=True)))
    return torch.empty_like(values[5], dtype=torch.bool, memory_format=torch.contiguous_format)
