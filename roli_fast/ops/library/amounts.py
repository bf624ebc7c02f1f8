"""What operators take: batches and amounts, checked once more for callers of the operator."""

import torch
from torch import Tensor

from roli_fast.ops import checks, reference


def as_amount(value: float | Tensor, x: Tensor) -> Tensor:
    """`value` as the operator takes it.

    A sum, because torch.full and torch.tensor make the number a constant of the graph.
    """
    if isinstance(value, Tensor):
        return value
    dtype = reference.compute_dtype(x.dtype)
    return torch.zeros((1,), dtype=dtype, device=x.device) + value


def check_batch(
    x_adv: Tensor, others: dict[str, Tensor], amounts: dict[str, Tensor], name: str = "x_adv"
) -> None:
    """The checks of the public ops, where amounts may also be (1,)."""
    checks.batch(name, x_adv)
    for other, value in others.items():
        checks.same_kind(other, value, x_adv)
    for amount, value in amounts.items():
        whole = value.expand(x_adv.shape[0]) if value.shape == (1,) else value
        checks.amount(amount, whole, x_adv)
