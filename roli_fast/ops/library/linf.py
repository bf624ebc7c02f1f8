"""The Linf ops as operators."""

import torch
from torch import Tensor

from roli_fast.ops import checks
from roli_fast.ops.dispatch.linf import linf_step_
from roli_fast.ops.library.amounts import check_batch


@torch.library.custom_op("roli_fast::linf_step_", mutates_args=("x_adv",))
def linf_step_op(  # noqa: PLR0913 - the op's own arguments
    x_adv: Tensor,
    grad: Tensor,
    x: Tensor,
    eps: Tensor,
    step_size: Tensor,
    low: float,
    high: float,
) -> None:
    """`ops.linf_step_` without the check that autograd is off."""
    check_batch(x_adv, {"grad": grad, "x": x}, {"eps": eps, "step_size": step_size})
    linf_step_(x_adv, grad, x, eps, step_size, (low, high))


@linf_step_op.register_fake
def _(  # noqa: PLR0913 - the op's own arguments
    x_adv: Tensor,
    grad: Tensor,
    x: Tensor,
    eps: Tensor,
    step_size: Tensor,
    low: float,
    high: float,
) -> None:
    check_batch(x_adv, {"grad": grad, "x": x}, {"eps": eps, "step_size": step_size})
    checks.box(low, high)
