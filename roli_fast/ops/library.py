"""The ops as torch.library operators, for graphs that torch.compile captures.

Used only while compiling: in eager mode an operator costs 16 us a call. `eps` and `step_size` are
always tensors here, (1,) or (B,): a Python number would make one graph for every value.
"""

import torch
from torch import Tensor

from roli_fast.ops import checks, dispatch, reference


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
    _check(x_adv, grad, x, eps, step_size)
    dispatch.linf_step_(x_adv, grad, x, eps, step_size, (low, high))


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
    _check(x_adv, grad, x, eps, step_size)
    checks.box(low, high)


def _check(x_adv: Tensor, grad: Tensor, x: Tensor, eps: Tensor, step_size: Tensor) -> None:
    checks.batch("x_adv", x_adv)
    checks.same_kind("grad", grad, x_adv)
    checks.same_kind("x", x, x_adv)
    for name, amount in (("eps", eps), ("step_size", step_size)):
        checks.amount(name, amount.expand(x_adv.shape[0]) if amount.shape == (1,) else amount, x)


def as_amount(value: float | Tensor, x: Tensor) -> Tensor:
    """`value` as the operator takes it.

    A sum, because torch.full and torch.tensor make the number a constant of the graph.
    """
    if isinstance(value, Tensor):
        return value
    dtype = reference.compute_dtype(x.dtype)
    return torch.zeros((1,), dtype=dtype, device=x.device) + value
