"""The L2 ops as operators."""

import torch
from torch import Tensor

from roli_fast.ops import checks
from roli_fast.ops.dispatch.l2 import l2_project_, l2_step_
from roli_fast.ops.library.amounts import check_batch


@torch.library.custom_op("roli_fast::l2_project_", mutates_args=("x_adv",))
def l2_project_op(x_adv: Tensor, x: Tensor, eps: Tensor, low: float, high: float) -> None:
    """`ops.l2_project_` without the check that autograd is off."""
    check_batch(x_adv, {"x": x}, {"eps": eps})
    l2_project_(x_adv, x, eps, (low, high))


@l2_project_op.register_fake
def _(x_adv: Tensor, x: Tensor, eps: Tensor, low: float, high: float) -> None:
    check_batch(x_adv, {"x": x}, {"eps": eps})
    checks.box(low, high)


@torch.library.custom_op("roli_fast::l2_step_", mutates_args=("x_adv",))
def l2_step_op(  # noqa: PLR0913 - the op's own arguments
    x_adv: Tensor,
    grad: Tensor,
    x: Tensor,
    eps: Tensor,
    step_size: Tensor,
    low: float,
    high: float,
) -> None:
    """`ops.l2_step_` without the check that autograd is off."""
    check_batch(x_adv, {"grad": grad, "x": x}, {"eps": eps, "step_size": step_size})
    l2_step_(x_adv, grad, x, eps, step_size, (low, high))


@l2_step_op.register_fake
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
