"""The public op that keeps the best iterate of each sample."""

import torch
from torch import Tensor

from roli_fast.ops import checks, dispatch, library


def select_best_(  # noqa: PLR0913 - what is kept, and what it is taken from
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
    best, new = (best_x, best_grad, best_loss), (x_adv, grad, loss)
    tensors = {"best_x": best_x, "best_grad": best_grad, "best_loss": best_loss}
    tensors |= {"x_adv": x_adv, "grad": grad, "loss": loss}
    checks.selection(best, new)
    if torch.is_grad_enabled():
        checks.no_autograd(**tensors)
    if checks.seen(**tensors):
        return library.select_best_op(*best, *new)
    return dispatch.select_best_(best, new)
