"""What an attacker may do: a norm, a radius, and the range of valid pixels."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor

from roli_fast.errors import ArgumentError, ArgumentTypeError, describe

Bounds = tuple[float, float]
"""Lowest and highest valid pixel value."""


@dataclass(frozen=True)
class ThreatModel:
    """All images within `eps` of the original in `norm`, and within `bounds`.

    Args:
        norm: what limits the attacker: "linf", the largest change of one pixel channel, "l2", the
            Euclidean length of the change, or "l1", the sum of all changes.
        eps: radius in the units of the images: 8/255 in [0, 1] images for linf, 0.5 for l2, 12 for
            l1.
        bounds: lowest and highest valid pixel value.
    """

    norm: str = "linf"
    eps: float = 8 / 255
    bounds: Bounds = (0.0, 1.0)

    def __post_init__(self) -> None:
        check_positive("eps", self.eps)
        check_bounds(self.bounds)
        if self.norm == "linf":
            check_radius(self.eps, self.bounds)


def check_radius(eps: float, bounds: Bounds) -> None:
    """Raise where a linf radius covers the whole range of pixels: 8 for 8/255 is the usual slip."""
    if eps >= bounds[1] - bounds[0]:
        raise ArgumentError(
            describe(
                "eps",
                f"a radius below the range of pixels {tuple(bounds)}",
                eps,
                f"Did you mean {eps:g}/255? eps is in the units of the images.",
            )
        )


def check_positive(name: str, value: float) -> None:
    """Raise `ArgumentError` unless `value` is a finite number above zero."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ArgumentTypeError(
            describe(name, "a number > 0", repr(value), "Write 8/255 for pixel units.")
        )
    if not (math.isfinite(value) and value > 0):
        raise ArgumentError(describe(name, "a number > 0", value, "Write 8/255 for pixel units."))


def check_bounds(bounds: Bounds) -> None:
    """Raise `ArgumentError` unless `bounds` is (low, high), finite, low < high."""
    try:
        low, high = bounds
        ok = math.isfinite(low) and math.isfinite(high) and low < high
    except (TypeError, ValueError):
        ok = False
    if not ok:
        raise ArgumentError(
            describe("bounds", "(low, high) with low < high", bounds, "Images in [0, 1]: (0, 1).")
        )


_known: ContextVar[bool] = ContextVar("values_are_known", default=False)


@contextmanager
def known_values() -> Iterator[None]:
    """Within, nobody looks whether images lie within the bounds and labels are classes.

    For a caller who knows where they come from, as the training loop does: each look makes the host
    wait for a GPU. Types and shapes are checked all the same. It holds for this thread alone.
    """
    token = _known.set(True)
    try:
        yield
    finally:
        _known.reset(token)


def values_are_known() -> bool:
    """Whether `known_values` holds here."""
    return _known.get()


def check_images(x: Tensor, bounds: Bounds) -> None:
    """Raise unless `x` is a floating-point batch (B, ...) inside `bounds`. One host sync on a GPU,
    none within `known_values`.

    A normalised batch is the usual mistake: an attack on it has another radius than the one asked
    for, so it is refused here, once per attack.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim < 2:
        got = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ArgumentTypeError(
            describe("x", "a floating-point tensor (B, ...)", got, "Divide uint8 images by 255.")
        )
    if x.numel() == 0 or values_are_known():
        return
    low, high = (value.item() for value in torch.aminmax(x.detach()))
    lowest, highest = torch.tensor(bounds, dtype=x.dtype).tolist()  # 0.3 in fp32 is above 0.3
    if not (lowest <= low and high <= highest):  # also False for NaN
        raise ArgumentError(
            describe(
                "x",
                f"images within bounds {tuple(bounds)}",
                f"values from {low:.4g} to {high:.4g}",
                "Pass images before normalisation and put the normalisation inside the model "
                "(`models.Normalize`); for another pixel range set `bounds`.",
            )
        )
