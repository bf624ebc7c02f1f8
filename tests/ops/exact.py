"""The truth for the Linf step in exact arithmetic: fractions, and the numbers a dtype can hold."""

from fractions import Fraction

import torch

# dtype -> (significant bits, exponent of the smallest normal number)
FORMATS = {
    torch.float64: (53, -1022),
    torch.float32: (24, -126),
    torch.float16: (11, -14),
    torch.bfloat16: (8, -126),
}


def spacing(value: Fraction, dtype: torch.dtype) -> Fraction:
    """The distance between neighbours of `dtype` in the binade of `value`."""
    digits, smallest = FORMATS[dtype]
    exponent = value.numerator.bit_length() - value.denominator.bit_length()
    if abs(value) < Fraction(2) ** exponent:  # the bit lengths leave two candidates
        exponent -= 1
    return Fraction(2) ** (max(exponent, smallest) - digits + 1)


def floor(value: Fraction, dtype: torch.dtype) -> Fraction:
    """The largest number of `dtype` that is <= value."""
    step = spacing(value, dtype)
    return (value / step).__floor__() * step


def ceil(value: Fraction, dtype: torch.dtype) -> Fraction:
    """The smallest number of `dtype` that is >= value."""
    return -floor(-value, dtype)


def nearest(value: Fraction, dtype: torch.dtype) -> Fraction:
    """The nearest number of `dtype`, ties to even."""
    step = spacing(value, dtype)
    return round(value / step) * step  # Python rounds fractions half to even


def linf_step(x_adv, grad, x, *, eps, step_size, bounds, dtype) -> float:
    """One element of `ops.linf_step_`, from finite numbers of `dtype`."""
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    radius, size = nearest(Fraction(eps), wide), nearest(Fraction(step_size), wide)
    sign = (grad > 0) - (grad < 0)
    value = nearest(nearest(Fraction(x_adv) + sign * size, wide), dtype)
    value = max(value, ceil(Fraction(x) - radius, dtype))
    value = min(value, floor(Fraction(x) + radius, dtype))
    low, high = (nearest(nearest(Fraction(end), wide), dtype) for end in bounds)
    return float(min(max(value, low), high))
