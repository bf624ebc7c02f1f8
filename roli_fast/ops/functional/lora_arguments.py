"""What the LoRA ops ask of their arguments."""

import math
import numbers
from collections.abc import Sequence

import torch
from torch import Tensor

from roli_fast.errors import ArgumentError, ArgumentTypeError, describe
from roli_fast.ops import checks

Rows = tuple[tuple[int, int], ...]


def matrix(name: str, value: object) -> None:
    """`value` is a dense floating-point matrix."""
    checks.batch(name, value)
    if isinstance(value, Tensor) and value.dim() != 2:
        raise ArgumentError(describe(name, "a matrix", f"shape {tuple(value.shape)}"))


def on_device(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Both lie on one device, or in one fake mode."""
    checks.fake_alike(**{other_name: other, name: value})
    if value.device != other.device:
        expected = f"device {other.device}, that of `{other_name}`"
        raise ArgumentTypeError(describe(name, expected, value.device))


def factors(weight: Tensor, a: object, b: object, rows: object) -> Rows:
    """`rows` as a tuple, after checking that A and B fit it and `weight`."""
    out, width = weight.shape
    matrix("a", a)
    matrix("b", b)
    ranges = _rows(rows, out)
    assert isinstance(a, Tensor) and isinstance(b, Tensor)
    for name, value in (("a", a), ("b", b)):
        on_device(name, value, "weight", weight)
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


def number(name: str, value: object) -> float:
    """`value` is a finite number, returned as float."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ArgumentTypeError(describe(name, "a finite number", type(value).__name__))
    if not math.isfinite(checks.as_float(value)):
        raise ArgumentError(describe(name, "a finite number", checks.as_float(value)))
    return float(value)


def probability(value: object) -> float:
    """`dropout` is a number in [0, 1)."""
    found = number("dropout", value)
    if not 0.0 <= found < 1.0:
        fix = "0.1 drops a tenth of the inputs."
        raise ArgumentError(describe("dropout", "a number in [0, 1)", value, fix))
    return found


def seed(value: object, x: Tensor) -> None:
    """`seed` is None or one int64 number on the device of `x`."""
    if value is None:
        return
    fix = "Draw it: torch.randint(2**62, (1,), device=x.device)."
    if not isinstance(value, Tensor):
        got = type(value).__name__
        raise ArgumentTypeError(describe("seed", "an int64 tensor (1,) or None", got, fix))
    if value.dtype != torch.int64:
        raise ArgumentTypeError(describe("seed", "an int64 tensor (1,)", value.dtype, fix))
    checks.dense("seed", value)
    if value.numel() != 1:
        raise ArgumentError(describe("seed", "one number", f"shape {tuple(value.shape)}", fix))
    on_device("seed", value, "x", x)


def layer(x: object, weight: object, bias: object) -> None:
    """Images' features, weight and bias of one linear layer."""
    checks.batch("x", x)
    matrix("weight", weight)
    assert isinstance(x, Tensor) and isinstance(weight, Tensor)
    on_device("weight", weight, "x", x)
    out, width = weight.shape
    if x.shape[-1] != width:
        expected = f"shape (..., {width}), the inputs of `weight`"
        raise ArgumentError(describe("x", expected, tuple(x.shape)))
    if bias is None:
        return
    checks.batch("bias", bias)
    assert isinstance(bias, Tensor)
    on_device("bias", bias, "weight", weight)
    if bias.shape != (out,):
        raise ArgumentError(describe("bias", f"shape ({out},)", tuple(bias.shape)))


def lists(values: dict[str, Sequence]) -> None:
    """All are lists of one length, that of the first."""
    first = next(iter(values))
    for name, value in values.items():
        if not isinstance(value, (list, tuple)):
            got = type(value).__name__
            raise ArgumentTypeError(describe(name, "a list, one entry a layer", got))
        if len(value) != len(values[first]):
            expected = f"{len(values[first])} entries, one for each of `{first}`"
            raise ArgumentError(describe(name, expected, len(value)))
