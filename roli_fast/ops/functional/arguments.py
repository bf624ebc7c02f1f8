"""What the public ops on one batch ask of their arguments."""

import torch
from torch import Tensor

from roli_fast.ops import checks


def checked(
    x_adv: Tensor, others: dict[str, Tensor], **amounts: float | Tensor
) -> dict[str, float | Tensor]:
    """The amounts, each a float or a tensor (B,); raises as the ops' docstrings say."""
    checks.batch("x_adv", x_adv)
    for name, value in others.items():
        checks.same_kind(name, value, x_adv)
    numbers = {name: checks.amount(name, value, x_adv) for name, value in amounts.items()}
    if torch.is_grad_enabled():
        checks.no_autograd(x_adv=x_adv, **others)
    return numbers
