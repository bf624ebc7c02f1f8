"""select_best_."""

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from roli_fast.ops import checks, native, reference
from roli_fast.ops.dispatch.memory import finish, layout_of, plain, separate_addresses

Triple = tuple[Tensor, Tensor, Tensor]


def select_best_(best: Triple, new: Triple) -> Tensor:
    """Update `best` (x, gradient, loss) from `new`; returns which samples improved, (B,), bool.

    Types, dtypes, devices and shapes have been checked, memory has not.
    """
    addresses = separate_addresses(best, new)
    if addresses and native.usable("select_best_", best[0]):
        improved = _run(best[0], best[2], addresses)
        increment_version(best)
        return improved
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
    layouts = [layout_of(value) for value in best]
    targets = [v.contiguous(memory_format=m) for v, m in zip(best, layouts, strict=True)]
    sources = [v.contiguous(memory_format=m) for v, m in zip(new, layouts, strict=True)]
    improved = _run(targets[0], targets[2], [value.data_ptr() for value in (*targets, *sources)])
    for value, target in zip(best, targets, strict=True):
        finish(value, target)
    return improved


def _run(best_x: Tensor, best_loss: Tensor, addresses: list[int]) -> Tensor:
    """The kernel on dense memory, and which samples improved."""
    improved = torch.empty(best_loss.shape, dtype=torch.bool, device=best_loss.device)
    samples, row_bytes = best_x.shape[0], best_x.nbytes // best_x.shape[0]
    addresses.insert(3, improved.data_ptr())
    code = native.code(best_loss.dtype)
    native.run("select_best", best_x, *addresses, samples, row_bytes, code)
    return improved
