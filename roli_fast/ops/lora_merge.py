"""LoRA's merge: weight + update of many layers, in one launch, into second buffers."""

import math
import numbers
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from roli_fast.errors import ArgumentError, ArgumentTypeError, describe
from roli_fast.ops import checks, native
from roli_fast.ops.memory import finish, plain
from roli_fast.ops.rounding import compute_dtype

Rows = tuple[tuple[int, int], ...]
"""Disjoint ranges ((start, stop), ...) of output rows."""

MOST_RANK = 64  # kMostRank in csrc/lora.h


class Layer(NamedTuple):
    """What is merged into one buffer; see `lora_merge_`."""

    merged: Tensor
    weight: Tensor
    a: Tensor
    b: Tensor
    scale: float
    rows: Rows


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
    ranges = _check_merge(merged, weights, a, b, scales, rows)
    with torch.no_grad():
        layers = zip(merged, weights, a, b, map(float, scales), ranges, strict=True)
        merge([Layer(*layer) for layer in layers])


def slices(b: Tensor, rows: Rows) -> list[tuple[slice, slice, Tensor]]:
    """Of each range: its columns of y, its columns of x A^T, and B_i."""
    found, rank, done = [], b.shape[1], 0
    for place, (start, stop) in enumerate(rows):
        columns = slice(place * rank, (place + 1) * rank)
        found.append((slice(start, stop), columns, b[done : done + stop - start]))
        done += stop - start
    return found


def merge_reference(  # noqa: PLR0913 - the op's own quantities
    weight: Tensor, a: Tensor, b: Tensor, *, scale: float, rows: Rows, dtype: torch.dtype
) -> Tensor:
    """`weight` + scale * B_i A_i on the rows rows[i], computed in fp32 (or fp64), rounded once."""
    wide = compute_dtype(weight.dtype)
    merged, a = weight.to(wide, copy=True), a.to(wide)
    for out, columns, factor in slices(b, rows):
        merged[out] += scale * (factor.to(wide) @ a[columns])
    return merged.to(dtype)


def merge(layers: Sequence[Layer]) -> None:
    """Merge every layer: on CUDA by one launch for all that lie on one device in the same dtypes.

    Types, dtypes, devices, shapes and memory have been checked.
    """
    groups: dict[tuple, list[Layer]] = {}
    for layer in layers:
        merged, weight, a, b = (value.detach() for value in layer[:4])
        layer = Layer(merged, weight, a, b, layer.scale, layer.rows)
        if layer.weight.is_cuda and _fits_kernel(layer):
            key = (layer.weight.device, layer.weight.dtype, layer.merged.dtype)
            groups.setdefault(key, []).append(layer)
        elif layer.weight.dtype == layer.merged.dtype == layer.a.dtype == torch.float32:
            _merge_in_place(layer)
        else:
            options = {"scale": layer.scale, "rows": layer.rows, "dtype": layer.merged.dtype}
            layer.merged.copy_(merge_reference(layer.weight, layer.a, layer.b, **options))
    for (_, weight_dtype, dtype), group in groups.items():
        keep: list[Tensor] = []  # converted factors, until the launch
        parts = [part for layer in group for part in _parts(layer, keep)]
        codes = native.code(weight_dtype), native.code(dtype)
        native.run("lora_merge", group[0].weight, parts, *codes)
        for layer in group:
            finish(layer.merged, layer.merged)


def _fits_kernel(layer: Layer) -> bool:
    dense = layer.merged.is_contiguous() and layer.weight.is_contiguous()
    known = layer.merged.dtype in native.OPS["lora_merge_"] and layer.b.shape[1] <= MOST_RANK
    dense = dense and layer.weight.numel() > 0 and plain(*layer[:4])
    return dense and known and native.usable("lora_merge_", layer.weight)


def _merge_in_place(layer: Layer) -> None:
    """By torch's addmm, which beats loops of our own on a CPU; see benchmarks/NOTES.md."""
    if layer.rows != ((0, layer.weight.shape[0]),):
        layer.merged.copy_(layer.weight)
    for out, columns, factor in slices(layer.b, layer.rows):
        target, a = layer.merged[out], layer.a[columns]
        torch.addmm(layer.weight[out], factor, a, alpha=layer.scale, out=target)


def _parts(layer: Layer, keep: list[Tensor]) -> list[tuple]:
    """Ranges of rows as the kernel takes them: those of the update, and those between them."""
    width, rank = layer.weight.shape[1], layer.b.shape[1]
    a, b = layer.a.float().contiguous(), layer.b.float().contiguous()
    keep += [a, b]
    updates, done = [], 0
    for place, (start, stop) in enumerate(layer.rows):
        factors = (a.data_ptr() + place * rank * width * 4, b.data_ptr() + done * rank * 4)
        updates.append((start, stop, *factors, rank, layer.scale))
        done += stop - start
    ends = [0, *(end for start, stop, *_ in sorted(updates) for end in (start, stop))]
    ends.append(layer.weight.shape[0])
    between = [(*pair, 0, 0, 0, 0.0) for pair in zip(ends[::2], ends[1::2], strict=True)]
    parts, row_bytes = (
        [],
        (width * layer.weight.element_size(), width * layer.merged.element_size()),
    )
    for start, stop, *rest in sorted([*updates, *between]):
        if start < stop:
            weight = layer.weight.data_ptr() + start * row_bytes[0]
            merged = layer.merged.data_ptr() + start * row_bytes[1]
            parts.append((weight, merged, *rest[:2], stop - start, width, *rest[2:]))
    return parts


def _check_merge(  # noqa: PLR0913 - the op's own arguments
    merged: Sequence[Tensor],
    weights: Sequence[Tensor],
    a: Sequence[Tensor],
    b: Sequence[Tensor],
    scales: Sequence[float],
    rows: Sequence[Rows | None] | None,
) -> list[Rows]:
    """Every layer's rows."""
    lists = {"merged": merged, "weights": weights, "a": a, "b": b, "scales": scales}
    _check_lists(lists if rows is None else {**lists, "rows": rows})
    ranges = []
    for index, target in enumerate(merged):
        weight = weights[index]
        check_matrix("weights", weight)
        check_matrix("merged", target)
        check_number("scales", scales[index])
        check_device("merged", target, "weights", weight)
        if target.shape != weight.shape:
            expected = f"shape {tuple(weight.shape)}, that of the weight"
            raise ArgumentError(describe("merged", expected, tuple(target.shape)))
        narrow = weight.dtype == torch.float32 and target.dtype != torch.float64
        if target.dtype != weight.dtype and not narrow:
            raise ArgumentTypeError(describe("merged", f"{weight.dtype}", target.dtype))
        ranges.append(check_factors(weight, a[index], b[index], rows and rows[index]))
        checks.writable("merged", target)
        checks.apart("merged", target, weights=weight, a=a[index], b=b[index])
        if torch.is_grad_enabled():
            checks.no_autograd(merged=target)
    ordered = sorted((v for v in merged if checks.address(v)), key=checks.address)
    for first, second in zip(ordered, ordered[1:], strict=False):
        checks.apart("merged", first, merged=second)
    return ranges


def check_factors(weight: Tensor, a: object, b: object, rows: object) -> Rows:
    """`rows` as a tuple, after checking that A and B fit it and `weight`."""
    out, width = weight.shape
    check_matrix("a", a)
    check_matrix("b", b)
    ranges = _rows(rows, out)
    assert isinstance(a, Tensor) and isinstance(b, Tensor)
    for name, value in (("a", a), ("b", b)):
        check_device(name, value, "weight", weight)
        if value.dtype not in (weight.dtype, torch.float32):
            fix = f"Convert it: {name}.to(weight.dtype)."
            expected = f"{weight.dtype}, the dtype of `weight`, or torch.float32"
            raise ArgumentTypeError(describe(name, expected, value.dtype, fix))
    if b.dtype != a.dtype:
        raise ArgumentTypeError(describe("b", f"{a.dtype}, the dtype of `a`", b.dtype))
    rank, slices = b.shape[1], len(ranges)
    covered = sum(stop - start for start, stop in ranges)
    if rank < 1 or b.shape[0] != covered:
        expected = f"shape ({covered}, r), a row for each of the {covered} output rows in `rows`"
        raise ArgumentError(describe("b", expected, tuple(b.shape)))
    if a.shape != (slices * rank, width):
        expected = f"shape ({slices * rank}, {width}): {slices} times rank {rank}, inputs"
        raise ArgumentError(describe("a", expected, tuple(a.shape)))
    return ranges


def _rows(rows: object, out: int) -> Rows:
    """`rows` as pairs of ints; None covers everything."""
    if rows is None:
        return ((0, out),)
    expected = f"disjoint ranges ((start, stop), ...) of the {out} output rows"
    fix = "q and v of a fused qkv with width d: ((0, d), (2 * d, 3 * d))."
    try:
        ranges = tuple((start, stop) for start, stop in rows)  # type: ignore[attr-defined]
        if any(
            isinstance(end, bool) or not isinstance(end, int) for pair in ranges for end in pair
        ):
            raise TypeError
    except (TypeError, ValueError):
        raise ArgumentTypeError(describe("rows", expected, repr(rows), fix)) from None
    stops = dict(ranges)
    ends = [0, *(end for start in sorted(stops) for end in (start, stops[start])), out]
    good = 0 < len(stops) == len(ranges) and all(start < stop for start, stop in ranges)
    if not good or ends != sorted(ends):
        raise ArgumentError(describe("rows", expected, ranges, fix))
    return ranges


def check_matrix(name: str, value: object) -> None:
    """`value` is a dense floating-point matrix."""
    checks.batch(name, value)
    if isinstance(value, Tensor) and value.dim() != 2:
        raise ArgumentError(describe(name, "a matrix", f"shape {tuple(value.shape)}"))


def check_device(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Both lie on one device, or in one fake mode."""
    checks.fake_alike(**{other_name: other, name: value})
    if value.device != other.device:
        expected = f"device {other.device}, that of `{other_name}`"
        raise ArgumentTypeError(describe(name, expected, value.device))


def check_number(name: str, value: object) -> float:
    """`value` is a finite number, returned as float."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ArgumentTypeError(describe(name, "a finite number", type(value).__name__))
    if not math.isfinite(checks.as_float(value)):
        raise ArgumentError(describe(name, "a finite number", checks.as_float(value)))
    return float(value)


def _check_lists(values: dict[str, Sequence]) -> None:
    """All are lists of one length, that of the first."""
    first = next(iter(values))
    for name, value in values.items():
        if not isinstance(value, (list, tuple)):
            got = type(value).__name__
            raise ArgumentTypeError(describe(name, "a list, one entry a layer", got))
        if len(value) != len(values[first]):
            expected = f"{len(values[first])} entries, one for each of `{first}`"
            raise ArgumentError(describe(name, expected, len(value)))
