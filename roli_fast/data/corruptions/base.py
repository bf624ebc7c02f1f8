"""What every corruption has in common, the table of all kinds, and a split seen through one."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Generator, Tensor

from roli_fast.data.pixels import Pixels
from roli_fast.data.splits import ImageDataset
from roli_fast.data.transforms import SMALL, Transform
from roli_fast.errors import ArgumentError, ArgumentTypeError, describe
from roli_fast.registry import Registry
from roli_fast.seeds import derived_generator

SEVERITIES = (1, 2, 3, 4, 5)

Setting = tuple[float, ...]
"""The numbers of one severity, in the order of the function's arguments."""

Change = Callable[..., Tensor]
"""(x float32 (C, H, W) in [0, 1], generator, *setting) -> the same shape."""


@dataclass(frozen=True)
class Corruption:
    """One kind of corruption.

    Args:
        name: as the published files are called, "gaussian_noise".
        group: "noise", "blur", "weather" or "digital".
        change: what it does; what leaves [0, 1] is cut off afterwards.
        large: five settings for a short side above 64 pixels, published for 224 (ImageNet-C).
        small: five settings for a short side up to 64 pixels, published for 32 (CIFAR-10-C).
    """

    name: str
    group: str
    change: Change = field(repr=False)
    large: tuple[Setting, ...] = field(repr=False)
    small: tuple[Setting, ...] = field(repr=False)

    def __call__(self, image: Tensor, severity: int, generator: Generator) -> Tensor:
        """The corrupted image, new: uint8 (C, H, W), a function of the arguments alone.

        Args:
            image: uint8 (1 or 3, H, W), any height and width of at least one pixel.
            severity: 1 to 5.
            generator: source of all draws, on the CPU.

        Raises:
            ArgumentError: a severity that is not published.
            ArgumentTypeError: `image` is not uint8.
        """
        if image.dtype != torch.uint8:
            fix = "Corrupt images before they are divided by 255."
            raise ArgumentTypeError(describe("image", "uint8 (C, H, W)", image.dtype, fix))
        setting = self.setting(severity, min(image.shape[-2:]))
        return to_uint8(self.change(to_float(image), generator, *setting))

    def setting(self, severity: int, short_side: int) -> Setting:
        """The numbers for `severity` at images of `short_side` pixels."""
        if severity not in SEVERITIES:
            raise ArgumentError(describe("severity", "an integer from 1 to 5", repr(severity)))
        return (self.small if short_side <= SMALL else self.large)[severity - 1]


CORRUPTIONS: Registry[Corruption] = Registry("corruption")

Settings = tuple[float, ...] | tuple[Setting, ...]


def corruption(group: str, *, large: Settings, small: Settings) -> Callable[[Change], Change]:
    """Decorator: file the function under its own name; its settings as tuples or plain numbers."""
    tables = [
        tuple(one if isinstance(one, tuple) else (one,) for one in table)
        for table in (large, small)
    ]

    def add(change: Change) -> Change:
        CORRUPTIONS.register(change.__name__)(Corruption(change.__name__, group, change, *tables))
        return change

    return add


def to_float(image: Tensor) -> Tensor:
    """uint8 -> float32 in [0, 1]."""
    return image.to(torch.float32) / 255


def to_uint8(x: Tensor) -> Tensor:
    """Values in [0, 1] -> uint8, rounded; what lies outside is cut off."""
    return (x.clamp(0, 1) * 255).round().to(torch.uint8)


def corrupted(dataset: ImageDataset, kind: str, severity: int, *, seed: int = 0) -> ImageDataset:
    """The same samples without augmentation, brought to their size and then corrupted.

    It is read as any split is: by `batches`, with workers, through `subset`. The draws depend on
    (seed, sample id, kind, severity) alone.

    Args:
        dataset: a split, `splits.test` say; its labels and ids stay.
        kind: a name in `CORRUPTIONS`, "fog".
        severity: 1 to 5.
        seed: another seed, other noise.

    Raises:
        ArgumentError: an unknown kind or severity.
    """
    CORRUPTIONS[kind].setting(severity, dataset.image_size)
    pixels = _CorruptedPixels(dataset.pixels, dataset.prepare, CORRUPTIONS[kind], severity, seed)
    return replace(dataset, pixels=pixels, prepare=None, augment=None)


@dataclass(frozen=True, eq=False)
class _CorruptedPixels:
    """`pixels` after `prepare` and then the corruption, on every read."""

    pixels: Pixels = field(repr=False)
    prepare: Transform | None
    kind: Corruption
    severity: int
    seed: int

    def __len__(self) -> int:
        return len(self.pixels)

    def read(self, row: int) -> Tensor:
        image = self.pixels.read(row)
        if self.prepare is not None:
            image = self.prepare(image[None], torch.empty(1, 0))[0]
        draws = derived_generator("corruption", self.seed, self.kind.name, self.severity, row)
        return self.kind(image, self.severity, draws)

    def name(self, row: int) -> str:
        return self.pixels.name(row)
