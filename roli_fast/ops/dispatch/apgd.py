"""APGD's momentum steps."""

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor

from roli_fast.ops import native, reference
from roli_fast.ops.dispatch.memory import Amount
from roli_fast.ops.dispatch.step import Addresses, Update, run, slack_of, workspace

Bounds = tuple[float, float]
Tensors = tuple[Tensor, Tensor, Tensor, Tensor]
"""x_adv, x_prev, grad, x."""


def apgd_linf_step_(tensors: Tensors, amounts: dict[str, Amount], bounds: Bounds) -> None:
    """Update `x_prev`; see `step.run` for what has been checked."""
    _run("apgd_linf_step", reference.apgd_linf_step, tensors, amounts, bounds)


def apgd_l2_step_(tensors: Tensors, amounts: dict[str, Amount], bounds: Bounds) -> None:
    """Update `x_prev`; see `step.run` for what has been checked."""
    _run("apgd_l2_step", reference.apgd_l2_step, tensors, amounts, bounds)


def _run(
    kernel: str,
    specification: Callable[..., Tensor],
    tensors: Tensors,
    amounts: dict[str, Amount],
    bounds: Bounds,
) -> None:
    x_adv, x_prev, grad, x = tensors
    box = reference.box_limits(*bounds, x.dtype)
    run(
        Update(
            kernel + "_",
            {"x_prev": x_prev, "x_adv": x_adv, "grad": grad, "x": x},
            amounts,
            partial(_launch, kernel, box),
            lambda: specification(x_adv, x_prev, grad, x, **amounts, bounds=bounds),
        )
    )


def _launch(
    kernel: str, box: Bounds, target: Tensor, addresses: Addresses, amounts: Sequence[Amount]
) -> None:
    size, numbers = native.size(target), native.amounts(*amounts)
    reduces = kernel == "apgd_l2_step"
    space = workspace(target) if reduces else None
    slack = slack_of(target, box) if reduces else 0.0
    place = 0 if space is None else space.data_ptr()
    native.run(kernel, target, *addresses, *size, *numbers, *box, slack, place)
