"""APGD's momentum steps as operators."""

import torch
from torch import Tensor

from roli_fast.ops import checks
from roli_fast.ops.dispatch.apgd import apgd_l2_step_, apgd_linf_step_
from roli_fast.ops.library.amounts import check_batch


@torch.library.custom_op("roli_fast::apgd_linf_step_", mutates_args=("x_prev",))
def apgd_linf_step_op(  # noqa: PLR0913 - the op's own arguments
    x_adv: Tensor,
    x_prev: Tensor,
    grad: Tensor,
    x: Tensor,
    eps: Tensor,
    step_size: Tensor,
    momentum: Tensor,
    low: float,
    high: float,
) -> None:
    """`ops.apgd_linf_step_` without the check that autograd is off."""
    amounts = {"eps": eps, "step_size": step_size, "momentum": momentum}
    check_batch(x_adv, {"x_prev": x_prev, "grad": grad, "x": x}, amounts)
    apgd_linf_step_((x_adv, x_prev, grad, x), {**amounts}, (low, high))


@apgd_linf_step_op.register_fake
def _(  # noqa: PLR0913 - the op's own arguments
    x_adv: Tensor,
    x_prev: Tensor,
    grad: Tensor,
    x: Tensor,
    eps: Tensor,
    step_size: Tensor,
    momentum: Tensor,
    low: float,
    high: float,
) -> None:
    amounts = {"eps": eps, "step_size": step_size, "momentum": momentum}
    check_batch(x_adv, {"x_prev": x_prev, "grad": grad, "x": x}, amounts)
    checks.box(low, high)


@torch.library.custom_op("roli_fast::apgd_l2_step_", mutates_args=("x_prev",))
def apgd_l2_step_op(  # noqa: PLR0913 - the op's own arguments
    x_adv: Tensor,
    x_prev: Tensor,
    grad: Tensor,
    x: Tensor,
    eps: Tensor,
    step_size: Tensor,
    momentum: Tensor,
    low: float,
    high: float,
) -> None:
    """`ops.apgd_l2_step_` without the check that autograd is off."""
    amounts = {"eps": eps, "step_size": step_size, "momentum": momentum}
    check_batch(x_adv, {"x_prev": x_prev, "grad": grad, "x": x}, amounts)
    apgd_l2_step_((x_adv, x_prev, grad, x), {**amounts}, (low, high))


@apgd_l2_step_op.register_fake
def _(  # noqa: PLR0913 - the op's own arguments
    x_adv: Tensor,
    x_prev: Tensor,
    grad: Tensor,
    x: Tensor,
    eps: Tensor,
    step_size: Tensor,
    momentum: Tensor,
    low: float,
    high: float,
) -> None:
    amounts = {"eps": eps, "step_size": step_size, "momentum": momentum}
    check_batch(x_adv, {"x_prev": x_prev, "grad": grad, "x": x}, amounts)
    checks.box(low, high)
