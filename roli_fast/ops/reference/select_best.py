"""The specification of select_best_."""

import torch
from torch import Tensor


def improved(best_loss: Tensor, loss: Tensor) -> Tensor:
    """Which losses are better: numbers that are larger, or that replace a NaN. (B,), bool."""
    return ~torch.isnan(loss) & ~(loss <= best_loss)


def select_best(  # noqa: PLR0913 - the op's own arguments
    best_x: Tensor, best_grad: Tensor, best_loss: Tensor, x_adv: Tensor, grad: Tensor, loss: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What `ops.select_best_` writes into its first three arguments, and what it returns."""
    better = improved(best_loss, loss)
    rows = better.reshape(-1, *[1] * (x_adv.ndim - 1))
    return (
        torch.where(rows, x_adv, best_x),
        torch.where(rows, grad, best_grad),
        torch.where(better, loss, best_loss),
        better,
    )
