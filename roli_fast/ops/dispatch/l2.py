"""The L2 ops."""

from collections.abc import Sequence

from torch import Tensor

from roli_fast.ops import native, reference
from roli_fast.ops.dispatch.memory import Amount
from roli_fast.ops.dispatch.step import Addresses, Update, run, slack_of, workspace

Bounds = tuple[float, float]


def l2_project_(x_adv: Tensor, x: Tensor, eps: Amount, bounds: Bounds) -> None:
    """Update `x_adv`; see `step.run` for what has been checked."""
    box = reference.box_limits(*bounds, x_adv.dtype)

    def launch(target: Tensor, addresses: Addresses, amounts: Sequence[Amount]) -> None:
        _launch(target, (addresses[0], 0, addresses[1]), (*amounts, 0.0), box)

    tensors = {"x_adv": x_adv, "x": x}
    run(
        Update(
            "l2_project_",
            tensors,
            {"eps": eps},
            launch,
            lambda: reference.l2_project(x_adv, x, eps=eps, bounds=bounds),
        )
    )


def l2_step_(  # noqa: PLR0913 - the op's own arguments
    x_adv: Tensor, grad: Tensor, x: Tensor, eps: Amount, step_size: Amount, bounds: Bounds
) -> None:
    """Update `x_adv`; see `step.run` for what has been checked."""
    box = reference.box_limits(*bounds, x_adv.dtype)
    amounts = {"eps": eps, "step_size": step_size}
    run(
        Update(
            "l2_step_",
            {"x_adv": x_adv, "grad": grad, "x": x},
            amounts,
            lambda target, addresses, values: _launch(target, addresses, values, box),
            lambda: reference.l2_step(x_adv, grad, x, **amounts, bounds=bounds),
        )
    )


def _launch(target: Tensor, addresses: Addresses, amounts: Sequence[Amount], box: Bounds) -> None:
    size, numbers, space = native.size(target), native.amounts(*amounts), workspace(target)
    place = 0 if space is None else space.data_ptr()
    arguments = (*addresses, *size, *numbers, *box, slack_of(target, box), place)
    native.run("l2_step", target, *arguments)
