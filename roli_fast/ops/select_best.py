"""The op that keeps the best iterate of each sample."""

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from roli_fast.errors import ArgumentError, ArgumentTypeError, describe
from roli_fast.ops import checks, native
from roli_fast.ops.memory import finish, layout_of, plain, separate_addresses

Triple = tuple[Tensor, Tensor, Tensor]
"""Images, gradients, losses."""


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
    _check(best, new)
    tensors = {"best_x": best_x, "best_grad": best_grad, "best_loss": best_loss}
    tensors |= {"x_adv": x_adv, "grad": grad, "loss": loss}
    if torch.is_grad_enabled():
        checks.no_autograd(**tensors)
    if checks.seen(**tensors) and checks.can_be_written(*best):
        return select_best_op(*best, *new)
    return _select(best, new)


def reference(best: Triple, new: Triple) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What `select_best_` writes into its first three arguments, and what it returns."""
    better = improved(best[2], new[2])
    rows = better.reshape(-1, *[1] * (new[0].ndim - 1))
    images, grads = (torch.where(rows, new[place], best[place]) for place in (0, 1))
    return images, grads, torch.where(better, new[2], best[2]), better


def improved(best_loss: Tensor, loss: Tensor) -> Tensor:
    """Which losses are better: numbers that are larger, or that replace a NaN. (B,), bool."""
    return ~torch.isnan(loss) & ~(loss <= best_loss)


def _check(best: Triple, new: Triple) -> None:
    """Iterates, gradients and losses of one batch: (B, ...), the same, (B,)."""
    best_x, best_grad, best_loss = best
    x_adv, grad, loss = new
    checks.batch("best_x", best_x)
    for name, value in (("best_grad", best_grad), ("x_adv", x_adv), ("grad", grad)):
        checks.same_kind(name, value, best_x, "best_x")
    checks.batch("best_loss", best_loss)
    if best_loss.shape != best_x.shape[:1]:
        expected = f"shape {tuple(best_x.shape[:1])}, a loss a sample"
        raise ArgumentError(describe("best_loss", expected, tuple(best_loss.shape)))
    if best_loss.device != best_x.device:
        expected = f"device {best_x.device}, that of `best_x`"
        raise ArgumentTypeError(describe("best_loss", expected, best_loss.device))
    checks.same_kind("loss", loss, best_loss, "best_loss")


def _select(best: Triple, new: Triple) -> Tensor:
    """Update `best` (x, gradient, loss) from `new`; returns which samples improved, (B,), bool.

    Types, dtypes, devices and shapes have been checked, memory has not.
    """
    addresses = separate_addresses(best, new)
    if addresses and native.usable("select_best_", best[0]):
        better = _run(best[0], best[2], addresses)
        increment_version(best)
        return better
    names = ("best_x", "best_grad", "best_loss")
    others = dict(zip(("x_adv", "grad", "loss"), new, strict=True))
    for index, name in enumerate(names):
        checks.writable(name, best[index])
        rest = dict(zip(names[index + 1 :], best[index + 1 :], strict=True))
        checks.apart(name, best[index], **rest, **others)
    if best[0].numel() and plain(*best, *new) and native.usable("select_best_", best[0]):
        return _select_dense(best, new)
    *results, better = reference(best, new)
    for target, result in zip(best, results, strict=True):
        target.copy_(result)
    return better


def _select_dense(best: Triple, new: Triple) -> Tensor:
    layouts = [layout_of(value) for value in best]
    targets = [v.contiguous(memory_format=m) for v, m in zip(best, layouts, strict=True)]
    sources = [v.contiguous(memory_format=m) for v, m in zip(new, layouts, strict=True)]
    better = _run(targets[0], targets[2], [value.data_ptr() for value in (*targets, *sources)])
    for value, target in zip(best, targets, strict=True):
        finish(value, target)
    return better


def _run(best_x: Tensor, best_loss: Tensor, addresses: list[int]) -> Tensor:
    """The kernel on dense memory, and which samples better."""
    better = torch.empty(best_loss.shape, dtype=torch.bool, device=best_loss.device)
    samples, row_bytes = best_x.shape[0], best_x.nbytes // best_x.shape[0]
    addresses.insert(3, better.data_ptr())
    code = native.code(best_loss.dtype)
    native.run("select_best", best_x, *addresses, samples, row_bytes, code)
    return better


@torch.library.custom_op(
    "roli_fast::select_best_", mutates_args=("best_x", "best_grad", "best_loss")
)
def select_best_op(  # noqa: PLR0913 - the op's own arguments
    best_x: Tensor, best_grad: Tensor, best_loss: Tensor, x_adv: Tensor, grad: Tensor, loss: Tensor
) -> Tensor:
    """`ops.select_best_` without the check that autograd is off."""
    _check((best_x, best_grad, best_loss), (x_adv, grad, loss))
    return _select((best_x, best_grad, best_loss), (x_adv, grad, loss))


@select_best_op.register_fake
def _(  # noqa: PLR0913 - the op's own arguments
    best_x: Tensor, best_grad: Tensor, best_loss: Tensor, x_adv: Tensor, grad: Tensor, loss: Tensor
) -> Tensor:
    _check((best_x, best_grad, best_loss), (x_adv, grad, loss))
    return torch.empty_like(loss, dtype=torch.bool, memory_format=torch.contiguous_format)
