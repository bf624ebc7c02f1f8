"""Every op that updates one batch, behind the one signature of l2_cases."""

import torch
from l2_cases import OPS, Op
from references import reference

from roli_fast import ops

ORDER = ("x_adv", "x_prev", "grad", "x")
"""Tensors as the public ops and the operators take them; `Op.tensors` begins with the written."""


def _op(name: str, tensors: tuple[str, ...], amounts: tuple[str, ...]) -> Op:
    specified = getattr(reference, name.rstrip("_"))
    return Op(name, getattr(ops, name), specified, specified, tensors, amounts)


UPDATES = OPS | {
    op.name: op
    for op in (
        _op("linf_step_", ("x_adv", "grad", "x"), ("eps", "step_size")),
        _op("l1_project_", ("x_adv", "x"), ("eps",)),
        _op("l1_step_", ("x_adv", "grad", "x"), ("eps", "step_size", "density")),
        *(
            _op(f"fab_{norm}_step_", ("x_adv", "grad", "x"), ("value", "alpha_max", "eta"))
            for norm in ("linf", "l2", "l1")
        ),
    )
}


def operator(name: str):
    """The op as torch.library has it."""
    return getattr(torch.ops.roli_fast, name)
