"""How large a head is, class by class."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from roli_fast.analysis.costs import Cost, say
from roli_fast.errors import ArgumentTypeError, describe
from roli_fast.losses import at_least_float32


@dataclass(frozen=True, eq=False)
class HeadNorms:
    """Norms of a head V (C, D), b (C,).

    Args:
        norm: ||V||_F, the bias apart: Norm(C) of Tomihari & Sato 2024 (arXiv:2405.16747), table 1.
        rows: ||v_c||_2, (C,) on the CPU; their squares add up to that of `norm`.
        bias: ||b||_2; 0 without a bias.
        cosines: of the rows with one another, (C, C) on the CPU; 0 for a row of zeros.
    """

    norm: float
    rows: Tensor
    bias: float
    cosines: Tensor


def head_norms_cost(head: nn.Linear) -> Cost:
    """No pass: C^2 D products."""
    classes, dimensions = head.weight.shape
    return Cost("head norms", flops=2.0 * classes**2 * dimensions, bytes=4 * classes**2)


def head_norms(head: nn.Linear) -> HeadNorms:
    """Norms of a linear head's weight.

    Raises:
        ArgumentTypeError: no linear layer; `LinearHead.of(model).layer` finds it.
    """
    if not isinstance(head, nn.Linear):
        fix = "Give LinearHead.of(model).layer."
        raise ArgumentTypeError(describe("head", "an nn.Linear", type(head).__name__, fix))
    say(head_norms_cost(head))
    weight = at_least_float32(head.weight.detach()).cpu().double()
    rows = weight.norm(dim=1)
    unit = weight / torch.where(rows > 0, rows, 1.0)[:, None]
    bias = 0.0 if head.bias is None else head.bias.detach().double().norm().item()
    return HeadNorms(rows.norm().item(), rows.float(), bias, (unit @ unit.T).float())
