"""What every reference shares: compute dtypes, amounts of samples, rounding inward."""

import math
from functools import lru_cache

import torch
from torch import Tensor

from roli_fast.errors import ArgumentError, describe

LARGEST = 2.0**100
"""Numbers beyond are refused: products and distances of pixels have to stay numbers of fp32."""
BITS = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
}


def compute_dtype(storage: torch.dtype) -> torch.dtype:
    """The dtype in which an op on `storage` tensors computes."""
    return torch.float64 if storage == torch.float64 else torch.float32


@lru_cache(maxsize=256)
def box_limits(low: float, high: float, dtype: torch.dtype) -> tuple[float, float]:
    """The bounds as numbers of `dtype`: the nearest, as torch makes them of a number.

    So an image that was clamped to the bounds in its own dtype lies in the box. Made without
    tensors, which would follow the default device and the modes that are on.
    """
    if not -LARGEST <= low < high <= LARGEST:
        expected = (
            "numbers (low, high) with low < high, of at most 2**100; images in [0, 1]: (0, 1)"
        )
        raise ArgumentError(describe("bounds", expected, (low, high)))
    most = torch.finfo(dtype).max
    ends = [min(max(_nearest(end, dtype), -most), most) for end in (low, high)]
    if ends[0] == ends[1]:
        expected = f"a range that holds several numbers of {dtype}"
        raise ArgumentError(describe("bounds", expected, (low, high)))
    return ends[0], ends[1]


def _nearest(value: float, dtype: torch.dtype) -> float:
    """`value` by way of fp32, as torch converts numbers; ties to even."""
    for kind in (compute_dtype(dtype), dtype):
        info = torch.finfo(kind)
        exponent = math.frexp(max(abs(value), info.smallest_normal))[1] - 1
        step = math.ldexp(info.eps, exponent)
        value = round(value / step) * step
    return value


def per_sample(value: float | Tensor, x: Tensor) -> Tensor:
    """`value` in the compute dtype, shaped to broadcast over (B, ...)."""
    dtype = compute_dtype(x.dtype)
    if isinstance(value, Tensor):
        return value.to(dtype).reshape(-1, *[1] * (x.ndim - 1))
    return torch.full((), value, dtype=torch.float64, device=x.device).to(dtype)


def clamp(value: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    """`value` within [low, high]; a NaN stays, and `high` wins over `low`."""
    raised = torch.where(value < low, low, value)
    return torch.where(raised > high, high, raised)


def sum_error(a: Tensor, b: Tensor, total: Tensor) -> Tensor:
    """The exact error of a rounded sum: a + b == total + error (Knuth's TwoSum)."""
    b_seen = total - a
    return (a - (total - b_seen)) + (b - b_seen)


def round_up(value: Tensor, error: Tensor, dtype: torch.dtype) -> Tensor:
    """The smallest number of `dtype` that is >= value + error, `error` below half an ulp."""
    rounded = value.to(dtype)
    back = rounded.to(value.dtype)
    bits = rounded.view(BITS[dtype])
    next_up = (bits + torch.where(bits < 0, -1, 1).to(bits.dtype)).view(dtype)
    return torch.where((back < value) | ((back == value) & (error > 0)), next_up, rounded)


def neighbour(value: Tensor, *, down: Tensor) -> Tensor:
    """The next number of the dtype below `value` where `down`, above it elsewhere."""
    bits = value.view(BITS[value.dtype])
    lowest = torch.iinfo(bits.dtype).min
    size = bits & ~lowest
    away = torch.where(down, size | lowest, size) + 1  # farther from zero, on the side we go to
    shrinks = (size != 0) & ((bits < 0) != down)
    return torch.where(shrinks, bits - 1, away).view(value.dtype)
