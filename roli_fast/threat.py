"""What an attacker may do: a norm, a radius, and the range of valid pixels."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from roli_fast.errors import ArgumentError, ArgumentTypeError, describe, is_number
from roli_fast.norms import NORMS
from roli_fast.norms.base import Bounds as Bounds
from roli_fast.ops.rounding import box_limits

ROUNDINGS = 4
"""How many roundings beyond a bound a pixel may be: resizing leaves 1 + 1.2e-7, say."""


@dataclass(frozen=True)
class ThreatModel:
    """All images within `eps` of the original in `norm`, and within `bounds`.

    With other norms the attacker may choose any one of them: the threat is the union of the balls.
    An attack in one norm follows `norm` and `eps`; `each` has one threat for each norm.

    >>> ThreatModel("linf", 8 / 255, other_norms=("l2", "l1"), other_eps=(0.5, 12))

    Args:
        norm: what limits the attacker: "linf", the largest change of one pixel channel, "l2", the
            Euclidean length of the change, or "l1", the sum of all changes.
        eps: radius in the units of the images; null takes the norm's usual one: 8/255 of the range
            of pixels for linf, 0.5 for l2, 12 for l1.
        bounds: lowest and highest valid pixel value.
        other_norms: further norms that the attacker may choose, "l2,l1" say; none by default.
        other_eps: one radius for each of them, "0.5,12" say.
    """

    norm: str = "linf"
    eps: float = None  # pyright: ignore[reportAssignmentType] - a number once it is made
    bounds: Bounds = (0.0, 1.0)
    other_norms: tuple[str, ...] = ()
    other_eps: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        plain_numbers(self)
        for name in ("other_norms", "other_eps"):
            object.__setattr__(self, name, as_tuple(name, getattr(self, name)))
        NORMS[self.norm]  # raises where there is none
        check_bounds(self.bounds)
        if self.eps is None:
            object.__setattr__(self, "eps", usual_eps(self.norm, self.bounds))
        check_positive("eps", self.eps)
        check_radius(self.norm, self.eps, self.bounds)
        self._check_others()

    def _check_others(self) -> None:
        others = [name for name in NORMS if name != self.norm]
        names = self.other_norms
        if any(name not in others for name in names) or len(set(names)) < len(names):
            expected = f"different norms of: {', '.join(others)}"
            fix = f"'{self.norm}' is `norm` already." if self.norm in names else ""
            raise ArgumentError(describe("other_norms", expected, names, fix))
        if len(self.other_eps) != len(names):
            got = f"{len(self.other_eps)} for {len(names)} ({', '.join(names) or 'none'})"
            fix = "Separate them by commas: other_norms l2,l1 and other_eps 0.5,12."
            raise ArgumentError(describe("other_eps", "one radius for each other norm", got, fix))
        for name, eps in zip(names, self.other_eps, strict=True):
            check_positive("other_eps", eps)
            check_radius(name, eps, self.bounds, name="other_eps")

    @property
    def each(self) -> tuple["ThreatModel", ...]:
        """A threat of one norm for each norm, `norm` first."""
        alone = replace(self, other_norms=(), other_eps=())
        others = zip(self.other_norms, self.other_eps, strict=True)
        return (alone, *(replace(alone, norm=norm, eps=eps) for norm, eps in others))

    def radius(self, norm: str) -> float:
        """The radius in `norm`.

        Raises:
            ArgumentError: the threat has no such norm.
        """
        radii = {threat.norm: threat.eps for threat in self.each}
        if norm not in radii:
            have = ", ".join(radii)
            fix = f"Set eps too, or add '{norm}' to threat.other_norms and its radius to other_eps."
            got = f"{norm!r}, which has no eps"
            raise ArgumentError(describe("norm", f"a norm of the threat ({have})", got, fix))
        return radii[norm]


def as_tuple(name: str, value: object) -> tuple:
    """A list of YAML as a tuple, which can be hashed."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        fix = "Write a list or a tuple, also of one."
        raise ArgumentTypeError(describe(name, "several values", repr(value), fix))
    return plain_number(tuple(value))


def plain_number(value: object) -> Any:
    """A 0-d tensor or NumPy number as Python's, also in a tuple; anything else as it is."""
    if isinstance(value, tuple):
        return tuple(map(plain_number, value))
    return value.item() if getattr(value, "ndim", None) == 0 else value  # type: ignore[attr-defined]


def plain_numbers(config: Any) -> None:
    """`plain_number` for every field of a dataclass, frozen or not, so that it can be written."""
    for field in fields(config):
        object.__setattr__(config, field.name, plain_number(getattr(config, field.name)))


def usual_eps(norm: str, bounds: Bounds) -> float:
    """The radius in `norm` that is taken where none is given, in the units of `bounds`."""
    return NORMS[norm].usual_eps * (bounds[1] - bounds[0])


def check_radius(
    norm: str, eps: float, bounds: Bounds, size: int | None = None, *, name: str = "eps"
) -> None:
    """Raise where no two images within the bounds are `eps` apart: 8 for 8/255 is the usual slip.

    Args:
        norm: a name in `NORMS`.
        eps: the radius.
        bounds: lowest and highest valid pixel value.
        size: number of an image's values; None where it is not known: then only linf is checked,
            whose largest distance does not depend on it.
        name: what the message calls `eps`.
    """
    largest = (bounds[1] - bounds[0]) * NORMS[norm].largest(size)
    if eps > largest * (1 + 1e-6):  # a radius may be rounded to the images' dtype
        what = f"a radius in {norm} of at most {largest:.4g}, the largest distance of two images"
        fix = f"Did you mean {eps:g}/255? eps is in the units of the images."
        raise ArgumentError(describe(name, f"{what} within bounds {tuple(bounds)}", eps, fix))


def check_positive(name: str, value: object, *, zero: bool = False) -> None:
    """Raise `ArgumentError` unless `value` is a finite number above zero, or with `zero` 0."""
    expected, fix = f"a number {'>=' if zero else '>'} 0", "Write 8/255 for pixel units."
    if not is_number(value):
        raise ArgumentTypeError(describe(name, expected, repr(value), fix))
    if not (math.isfinite(value) and (value > 0 or zero and value == 0)):  # type: ignore[operator,arg-type]
        raise ArgumentError(describe(name, expected, value, fix))


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


def check_images(x: Tensor, bounds: Bounds) -> Tensor:
    """Return `x`, a floating-point batch (B, ...) inside `bounds`, detached. One host sync on a
    GPU, none within `known_values`.

    Pixels a few roundings beyond a bound are set to it, in a copy: the largest and smallest number
    of the dtype that the bounds hold. A normalised batch is the usual mistake: an attack on it has
    another radius than the one asked for, so it is refused here, once per attack.

    Raises:
        ArgumentError: pixels farther out, or NaN.
        ArgumentTypeError: no floating-point batch.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim < 2:
        got = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ArgumentTypeError(
            describe("x", "a floating-point tensor (B, ...)", got, "Divide uint8 images by 255.")
        )
    x = x.detach()
    if x.numel() == 0 or values_are_known():
        return x
    low, high = (value.item() for value in torch.aminmax(x))
    lowest, highest = box_limits(*bounds, x.dtype)
    if lowest <= low and high <= highest:
        return x
    beyond = max(lowest - low, high - highest)
    if not beyond <= ROUNDINGS * torch.finfo(x.dtype).eps * max(map(abs, bounds)):  # or NaN
        raise ArgumentError(
            describe(
                "x",
                f"images within bounds {tuple(bounds)}",
                f"values from {low:.4g} to {high:.4g}, up to {beyond:.2g} beyond",
                "Pass images before normalisation and put the normalisation inside the model "
                "(`models.Normalize`); for another pixel range set `bounds`.",
            )
        )
    return x.clamp(lowest, highest)


def as_pixels(x_adv: Tensor, x: Tensor) -> Tensor:
    """uint8 images: `x_adv` in [0, 1] rounded to 256 levels towards `x`, so that an image within a
    ball around images of 256 levels stays in it; what lies within 1e-4 of a level is on it.

    Where no level lies between the two it is the one nearest to `x`: `as_pixels(x, x)` rounds.
    """
    levels, near = (255 * images.to(torch.float32) for images in (x_adv, x))
    down, up = (levels + 1e-4).floor(), (levels - 1e-4).ceil()  # fp32 rounds 8/255 from a level off
    return near.round().clamp(down, up).clamp(0, 255).to(torch.uint8)
