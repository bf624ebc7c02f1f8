"""The readable references of all ops by their kernels' names, and what else tests compare with."""

from functools import partial
from types import SimpleNamespace

from roli_fast import ops
from roli_fast.ops import lora, random_start, rounding, select_best

STEPS = {
    name[:-1]: op.reference
    for name, op in vars(ops).items()
    if name[-1] == "_" and hasattr(op, "reference")
}


def _lora_linear(x, weight, bias, a, b, seed, *, scale, dropout, rows):  # noqa: PLR0913
    """Plain torch, followed by autograd; all tensors have one dtype."""
    seen = x if seed is None or dropout == 0.0 else lora.dropout_reference(x, seed, dropout)
    branch = lora.Branch(scale / (1.0 - dropout), dropout, rows, x.dtype)
    return lora.lora_apply(seen, x, weight, bias, a, b, branch)


reference = SimpleNamespace(
    **STEPS,
    **{f"{n}_random_start": partial(random_start.reference, n) for n in random_start.NORMS},
    select_best=select_best.reference,
    lora_linear=_lora_linear,
    lora_dropout=lora.dropout_reference,
    lora_merge=lora.merge_reference,
    dropout_threshold=lora.dropout_threshold,
    box_limits=rounding.box_limits,
    compute_dtype=rounding.compute_dtype,
)
