"""select_best_ as an operator."""

import torch
from torch import Tensor

from roli_fast.ops.checks import selection
from roli_fast.ops.dispatch.select_best import select_best_


@torch.library.custom_op(
    "roli_fast::select_best_", mutates_args=("best_x", "best_grad", "best_loss")
)
def select_best_op(  # noqa: PLR0913 - the op's own arguments
    best_x: Tensor, best_grad: Tensor, best_loss: Tensor, x_adv: Tensor, grad: Tensor, loss: Tensor
) -> Tensor:
    """`ops.select_best_` without the check that autograd is off."""
    selection((best_x, best_grad, best_loss), (x_adv, grad, loss))
    return select_best_((best_x, best_grad, best_loss), (x_adv, grad, loss))


@select_best_op.register_fake
def _(  # noqa: PLR0913 - the op's own arguments
    best_x: Tensor, best_grad: Tensor, best_loss: Tensor, x_adv: Tensor, grad: Tensor, loss: Tensor
) -> Tensor:
    selection((best_x, best_grad, best_loss), (x_adv, grad, loss))
    return torch.empty_like(loss, dtype=torch.bool, memory_format=torch.contiguous_format)
