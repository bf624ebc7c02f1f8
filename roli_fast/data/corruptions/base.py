"""What every corruption has in common, and the table of all kinds."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from roli_fast.data.transforms import SMALL
from roli_fast.errors import ArgumentError, ArgumentTypeError, describe
from roli_fast.registry import Registry

SEVERITIES = (1, 2, 3, 4, 5)
GROUPS = ("noise", "blur", "weather", "digital")

Setting = tuple[float, ...]
"""The numbers of one severity, in the order of the function's arguments."""


@dataclass(frozen=True)
class Corruption:
    """One kind of corruption.

    Args:
        name: as the published files are called, "gaussian_noise".
        group: "noise", "blur", "weather" or "digital".
        change: (x float32 (C, H, W) in [0, 1], generator, *setting) -> the same shape; what leaves
            [0, 1] is cut off afterwards.
        large: five settings for a short side above 64 pixels, published for 224 (ImageNet-C).
        small: five settings for a short side up to 64 pixels, published for 32 (CIFAR-10-C).
    """

    name: str
    group: str
    change: Callable[..., Tensor] = field(repr=False)
    large: tuple[Setting, ...] = field(repr=False)
    small: tuple[Setting, ...] = field(repr=False)

    def __call__(self, image: Tensor, severity: int, generator: Generator) -> Tensor:
        """The corrupted image, new: uint8 (C, H, W), a function of the arguments alone.

        Args:
            image: uint8 (1 or 3, H, W), any height and width of at least one pixel.
            severity: 1 to 5.
            generator: source of all draws, on the CPU.

        Raises:
            ArgumentError: another shape, or a severity that is not published.
            ArgumentTypeError: `image` is not uint8.
        """
        check_severity(severity)
        _check_image(image)
        setting = self.setting(severity, min(image.shape[-2:]))
        return to_uint8(self.change(to_float(image), generator, *setting))

    def setting(self, severity: int, short_side: int) -> Setting:
        """The numbers for `severity` at images of `short_side` pixels."""
        return (self.small if short_side <= SMALL else self.large)[severity - 1]


CORRUPTIONS: Registry[Corruption] = Registry("corruption")

Change = Callable[..., Tensor]
Settings = tuple[float, ...] | tuple[Setting, ...]


def corruption(group: str, *, large: Settings, small: Settings) -> Callable[[Change], Change]:
    """Decorator: file the function under its own name; its settings as tuples or plain numbers."""

    def add(change: Change) -> Change:
        name = change.__name__
        kind = Corruption(name, group, change, _tuples(large), _tuples(small))
        CORRUPTIONS.register(name)(kind)
        return change

    return add


def to_float(image: Tensor) -> Tensor:
    """uint8 -> float32 in [0, 1]."""
    return image.to(torch.float32) / 255


def to_uint8(x: Tensor) -> Tensor:
    """Values in [0, 1] -> uint8, rounded; what lies outside is cut off."""
    return (x.clamp(0, 1) * 255).round().to(torch.uint8)


def check_severity(severity: int) -> None:
    """Raise unless `severity` is one of the five."""
    if not isinstance(severity, int) or severity not in SEVERITIES or severity is True:
        raise ArgumentError(describe("severity", "an integer from 1 to 5", repr(severity)))


def _check_image(image: Tensor) -> None:
    if not isinstance(image, Tensor) or image.dtype != torch.uint8:
        got = image.dtype if isinstance(image, Tensor) else type(image).__name__
        fix = "Corrupt images before they are divided by 255."
        raise ArgumentTypeError(describe("image", "uint8 (C, H, W)", got, fix))
    if image.ndim != 3 or image.shape[0] not in (1, 3) or not image.numel():
        expected = "one image (C, H, W) with 1 or 3 channels and at least one pixel"
        raise ArgumentError(describe("image", expected, f"shape {tuple(image.shape)}"))


def _tuples(settings: Settings) -> tuple[Setting, ...]:
    return tuple(c if isinstance(c, tuple) else (c,) for c in settings)
