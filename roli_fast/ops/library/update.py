"""The ops that update one batch as operators: (*tensors, *amounts, low, high), one rule for all.

They are `ops.<op>` without the check that autograd is off. The schema is written out because the
rule does not name its arguments.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from roli_fast.ops import dispatch, reference
from roli_fast.ops.library.amounts import check_batch


def _operator(op: str, tensors: tuple[str, ...], amounts: tuple[str, ...]) -> Callable[..., None]:
    """roli_fast::<op>, for tensors and amounts in the order of the public op."""
    written = "x_prev" if "x_prev" in tensors else "x_adv"
    arguments = [f"Tensor{'(a!)' if name == written else ''} {name}" for name in tensors]
    arguments += [f"Tensor {name}" for name in amounts] + ["float low", "float high"]

    def checked(values: tuple[Tensor, ...]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        images = dict(zip(tensors, values[: len(tensors)], strict=True))
        numbers = dict(zip(amounts, values[len(tensors) :], strict=True))
        check_batch(images["x_adv"], images, numbers)
        return images, numbers

    def run(*values) -> None:
        images, numbers = checked(values[:-2])
        dispatch.update(op, {written: images[written]} | images, {**numbers}, values[-2:])

    def fake(*values) -> None:
        images, _ = checked(values[:-2])
        reference.box_limits(*values[-2:], images["x_adv"].dtype)

    operator = torch.library.custom_op(
        f"roli_fast::{op}", run, mutates_args=(written,), schema=f"({', '.join(arguments)}) -> ()"
    )
    operator.register_fake(fake)
    return operator


_STEP = ("x_adv", "grad", "x")
_MOMENTUM_STEP = ("x_adv", "x_prev", "grad", "x"), ("eps", "step_size", "momentum")
_PLANE = ("value", "alpha_max", "eta")

linf_step_op = _operator("linf_step_", _STEP, ("eps", "step_size"))
l2_project_op = _operator("l2_project_", ("x_adv", "x"), ("eps",))
l2_step_op = _operator("l2_step_", _STEP, ("eps", "step_size"))
l1_project_op = _operator("l1_project_", ("x_adv", "x"), ("eps",))
l1_step_op = _operator("l1_step_", _STEP, ("eps", "step_size", "density"))
fab_linf_step_op = _operator("fab_linf_step_", _STEP, _PLANE)
fab_l2_step_op = _operator("fab_l2_step_", _STEP, _PLANE)
fab_l1_step_op = _operator("fab_l1_step_", _STEP, _PLANE)
apgd_linf_step_op = _operator("apgd_linf_step_", *_MOMENTUM_STEP)
apgd_l2_step_op = _operator("apgd_l2_step_", *_MOMENTUM_STEP)
