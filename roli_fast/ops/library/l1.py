"""The L1 ops as operators."""

import torch
from torch import Tensor

from roli_fast.ops import checks
from roli_fast.ops.dispatch.l1 import l1_project_, l1_step_
from roli_fast.ops.library.amounts import check_batch


@torch.library.custom_op("roli_fast::l1_project_", mutates_args=("x_adv",))
def l1_project_op(x_adv: Tensor, x: Tensor, eps: Tensor, low: float, high: float) -> None:
    """`ops.l1_project_` without the check that autograd is off."""
    check_batch(x_adv, {"x": x}, {"eps": eps})
    l1_project_(x_adv, x, eps, (low, high))


@l1_project_op.register_fake
def _(x_adv: Tensor, x: Tensor, eps: Tensor, low: float, high: float) -> None:
    check_batch(x_adv, {"x": x}, {"eps": eps})
    checks.box(low, high)


@torch.library.custom_op("roli_fast::l1_step_", mutates_args=("x_adv",))
def l1_step_op(  # noqa: PLR0913 - the op's own arguments
    x_adv: Tensor,
    grad: Tensor,
    x: Tensor,
    eps: Tensor,
    step_size: Tensor,
    density: Tensor,
    low: float,
    high: float,
) -> None:
    """`ops.l1_step_` without the check that autograd is off."""
    amounts = {"eps": eps, "step_size": step_size, "density": density}
    check_batch(x_adv, {"grad": grad, "x": x}, amounts)
    l1_step_(x_adv, grad, x, eps, step_size, density, (low, high))


@l1_step_op.register_fake
def _(  # noqa: PLR0913 - the op's own arguments
    x_adv: Tensor,
    grad: Tensor,
    x: Tensor,
    eps: Tensor,
    step_size: Tensor,
    density: Tensor,
    low: float,
    high: float,
) -> None:
    amounts = {"eps": eps, "step_size": step_size, "density": density}
    check_batch(x_adv, {"grad": grad, "x": x}, amounts)
    checks.box(low, high)
