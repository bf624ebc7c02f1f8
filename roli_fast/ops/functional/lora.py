"""The public LoRA ops."""

from collections.abc import Sequence

import torch
from torch import Tensor

from roli_fast.errors import ArgumentError, ArgumentTypeError, describe
from roli_fast.ops import checks, dispatch, library, native
from roli_fast.ops.dispatch.lora import Branch, Layer
from roli_fast.ops.functional import lora_arguments as arguments
from roli_fast.ops.functional.lora_arguments import Rows


def lora_linear(  # noqa: PLR0913 - the layer's own quantities
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a: Tensor,
    b: Tensor,
    *,
    scale: float,
    dropout: float = 0.0,
    seed: Tensor | None = None,
    rows: Rows | None = None,
) -> Tensor:
    """A linear layer with low-rank updates on ranges of its output rows (Hu et al. 2021, LoRA,
    arXiv:2106.09685, section 4.1): y = x W^T + bias, and

        y[..., rows[i]] += scale * (dropout(x) A_i^T) B_i^T        for i = 0 .. k - 1.

    Dropout sets elements of the branch's input to zero with probability `dropout` and divides the
    others by 1 - dropout. The mask is a function of `seed` and of an element's place in `x` alone
    (Philox4x32-10): the same on every device, in every dtype and for every number of threads; it is
    made anew in the backward pass instead of being stored. The layer itself never draws while a
    seed is given, so gradient checkpointing and CUDA graphs see the same mask again.

    Follows autograd with respect to x, a, b, and to weight and bias where they require grad; a
    frozen weight costs no weight gradient. Under autocast it computes in autocast's dtype.

    Args:
        x: inputs, shape (..., in), fp32, bf16, fp16 or fp64.
        weight: (out, in), in the dtype of `x` unless autocast is on.
        bias: (out,), or None.
        a: (k r, in): A_0 .. A_(k-1), one below the other; in the dtype of `weight`, or fp32.
        b: (rows in all ranges, r): B_0 .. B_(k-1), in the dtype of `a`.
        scale: what the update is multiplied with, alpha / r in LoRA.
        dropout: share of inputs that the branch does not see, in [0, 1); 0 in eval mode.
        seed: int64 (1,) on the device of `x`; None draws one from torch's global generator.
        rows: k disjoint ranges ((start, stop), ...) of output rows; None is ((0, out),).

    Returns:
        A new tensor (..., out).

    Raises:
        ArgumentTypeError: an argument has a wrong type, dtype or device.
        ArgumentError: a wrong shape or number, or ranges that overlap.
    """
    arguments.layer(x, weight, bias)
    ranges = arguments.factors(weight, a, b, rows)
    scale, dropout = arguments.number("scale", scale), arguments.probability(dropout)
    arguments.seed(seed, x)
    if dropout and seed is None:
        seed = torch.randint(-(2**63), 2**63 - 1, (1,), device=x.device)
    dtype = _compute_dtype(x, weight, bias)
    whole = torch.compiler.is_compiling() or not all(map(checks.address, (x, weight, a, b)))
    if not whole and native.usable("lora_linear", x):
        branch = Branch(scale / (1.0 - dropout), dropout, ranges)
        return dispatch.lora_linear(x, weight, bias, a, b, seed, branch, dtype)
    return library.lora_linear(x, weight, bias, a, b, seed, (scale, dropout, ranges, dtype))


def _compute_dtype(x: Tensor, weight: Tensor, bias: Tensor | None) -> torch.dtype:
    """Autocast's dtype, or the one that all have."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(kind)
    for name, value in (("weight", weight), ("bias", bias)):
        if value is not None and value.dtype != x.dtype:
            fix = f"Convert it, or use torch.autocast({kind!r})."
            raise ArgumentTypeError(
                describe(name, f"{x.dtype}, the dtype of `x`", value.dtype, fix)
            )
    return x.dtype


def lora_merge_(
    merged: Sequence[Tensor],
    weights: Sequence[Tensor],
    a: Sequence[Tensor],
    b: Sequence[Tensor],
    *,
    scales: Sequence[float],
    rows: Sequence[Rows | None] | None = None,
) -> None:
    """Write weight + update of LoRA layers into second buffers, all layers in one launch.

    merged[l] = weights[l], and merged[l][rows[l][i]] += scales[l] * B_i A_i, computed in fp32 (fp64
    for fp64 weights) and rounded once. `weights` stay as they are: there is nothing to unmerge and
    nothing that drifts.

    Args:
        merged: buffers, written; shape and device of the weights, and their dtype, or bf16 or fp16
            for fp32 weights.
        weights: (out, in) each.
        a: (k r, in) each, in the dtype of the weight or fp32; see `lora_linear`.
        b: (rows in all ranges, r) each.
        scales: a number a layer.
        rows: a layer's ranges of output rows; None, for all or for one, is every row.

    Raises:
        ArgumentTypeError: an argument has a wrong type, dtype or device.
        ArgumentError: a wrong shape or number, lists of different lengths, or a buffer that shares
            memory with another tensor.
    """
    ranges = _checked(merged, weights, a, b, scales, rows)
    with torch.no_grad():
        layers = zip(merged, weights, a, b, map(float, scales), ranges, strict=True)
        dispatch.lora_merge_([Layer(*layer) for layer in layers])


def _checked(  # noqa: PLR0913 - the op's own arguments
    merged: Sequence[Tensor],
    weights: Sequence[Tensor],
    a: Sequence[Tensor],
    b: Sequence[Tensor],
    scales: Sequence[float],
    rows: Sequence[Rows | None] | None,
) -> list[Rows]:
    """Every layer's rows."""
    lists = {"merged": merged, "weights": weights, "a": a, "b": b, "scales": scales}
    arguments.lists(lists if rows is None else {**lists, "rows": rows})
    ranges = []
    for index, target in enumerate(merged):
        weight = weights[index]
        arguments.matrix("weights", weight)
        arguments.matrix("merged", target)
        arguments.number("scales", scales[index])
        arguments.on_device("merged", target, "weights", weight)
        if target.shape != weight.shape:
            expected = f"shape {tuple(weight.shape)}, that of the weight"
            raise ArgumentError(describe("merged", expected, tuple(target.shape)))
        narrow = weight.dtype == torch.float32 and target.dtype != torch.float64
        if target.dtype != weight.dtype and not narrow:
            raise ArgumentTypeError(describe("merged", f"{weight.dtype}", target.dtype))
        ranges.append(arguments.factors(weight, a[index], b[index], rows and rows[index]))
        checks.writable("merged", target)
        checks.apart("merged", target, weights=weight, a=a[index], b=b[index])
        if torch.is_grad_enabled():
            checks.no_autograd(merged=target)
    ordered = sorted((v for v in merged if checks.address(v)), key=checks.address)
    for first, second in zip(ordered, ordered[1:], strict=False):
        checks.apart("merged", first, merged=second)
    return ranges
