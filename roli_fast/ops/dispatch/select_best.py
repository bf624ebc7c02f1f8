"""select_best_."""

import torch
from torch import Tensor

from roli_fast.ops import checks, native, reference
from roli_fast.ops.dispatch.memory import finish, layout_of, plain

Triple = tuple[Tensor, Tensor, Tensor]


def select_best_(best: Triple, new: Triple) -> Tensor:
    """Update `best` (x, gradient, loss) from `new`; returns which samples improved, (B,), bool.

    Types, dtypes, devices and shapes have been checked, memory has not.
    """
    names = ("best_x", "best_grad", "best_loss")
    others = dict(zip(("x_adv", "grad", "loss"), new, strict=True))
    for index, name in enumerate(names):
        checks.writable(name, best[index])
        rest = dict(zip(names[index + 1 :], best[index + 1 :], strict=True))
        checks.apart(name, best[index], **rest, **others)
    if best[0].numel() and plain(*best, *new) and native.usable("select_best_", best[0]):
        return _select(best, new)
    *results, improved = reference.select_best(*best, *new)
    for target, result in zip(best, results, strict=True):
        target.copy_(result)
    return improved


def _select(best: Triple, new: Triple) -> Tensor:
    """The kernel: rows of bytes, each pair of tensors in the layout of the one that is written."""
    layouts = [layout_of(value) for value in best]
    targets = [v.contiguous(memory_format=m) for v, m in zip(best, layouts, strict=True)]
    sources = [v.contiguous(memory_format=m) for v, m in zip(new, layouts, strict=True)]
    improved = torch.empty(best[2].shape, dtype=torch.bool, device=best[2].device)
    samples, row_bytes = best[0].shape[0], best[0].nbytes // best[0].shape[0]
    addresses = [value.data_ptr() for value in (*targets, improved, *sources)]
    code = native.code(best[2].dtype)
    native.run("select_best", best[0], *addresses, samples, row_bytes, code)
    for value, target in zip(best, targets, strict=True):
        finish(value, target)
    return improved
