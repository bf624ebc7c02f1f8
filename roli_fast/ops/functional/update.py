"""The body of every public op that updates one batch: check all arguments, then make the update."""

import torch
from torch import Tensor

from roli_fast.ops import checks, dispatch, library
from roli_fast.ops.library.amounts import as_amount

CHECKS = {
    "eps": checks.amount,
    "step_size": checks.amount,
    "density": checks.fraction,
    "momentum": checks.fraction,
    "value": checks.number,
    "alpha_max": checks.fraction,
    "eta": checks.amount,
}


def update(
    op: str,
    tensors: dict[str, Tensor],
    amounts: dict[str, float | Tensor],
    bounds: tuple[float, float],
) -> Tensor:
    """`op`'s update, by its operator while compiling; returns the tensor that was written.

    The first of `tensors` is written. Raises as the op's docstring says.
    """
    x_adv = tensors["x_adv"]
    checks.batch("x_adv", x_adv)
    for name, value in tensors.items():
        if value is not x_adv:
            checks.same_kind(name, value, x_adv)
    numbers = {name: CHECKS[name](name, value, x_adv) for name, value in amounts.items()}
    box = checks.pair(bounds)
    if torch.is_grad_enabled():
        checks.no_autograd(**tensors)
    if checks.seen(**tensors, **numbers):
        inputs = {name: as_amount(value, x_adv) for name, value in numbers.items()}
        getattr(library, op + "op")(**tensors, **inputs, low=box[0], high=box[1])
        return next(iter(tensors.values()))
    return dispatch.update(op, tensors, numbers, box)
