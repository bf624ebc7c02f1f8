"""Per-image transforms: pure functions of (uint8 image (C, H, W), generator) with a repr.

The geometry is torchvision's; the draws come from the given generator only. A transform that
draws nothing takes the generator too, so that all of them compose.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as geometry

from roli_fast.errors import DataError, describe

SMALL = 64  # images up to this size are padded and cropped, larger ones resized and cropped
SMALL_PADDING = 4


class Transform(Protocol):
    """An image in, an image out; uint8, channels first, any height and width."""

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """Transform `image` (uint8, (C, H, W)); every draw comes from `generator`."""
        ...


@dataclass(frozen=True)
class Resize:
    """Scale so that the short side has `size` pixels (bilinear, antialiased)."""

    size: int

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """The scaled image; the same tensor when the short side fits already."""
        if min(image.shape[-2:]) == self.size:
            return image
        return geometry.resize_image(image, [self.size], antialias=True)


@dataclass(frozen=True)
class CenterCrop:
    """Cut the central `size` x `size` pixels."""

    size: int

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """The crop, a view where possible."""
        if image.shape[-2:] == (self.size, self.size):
            return image
        return geometry.center_crop_image(image, [self.size, self.size])


@dataclass(frozen=True)
class RandomCrop:
    """Add `padding` black pixels on each side, then cut `size` x `size` at a uniform place.

    Draws: top, then left.
    """

    size: int
    padding: int = 0

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """The crop. Raises DataError when the padded image is smaller than the crop."""
        height, width = (side + 2 * self.padding - self.size for side in image.shape[-2:])
        if min(height, width) < 0:
            got = f"{image.shape[-2]}x{image.shape[-1]}"
            fix = "Put Resize before RandomCrop."
            raise DataError(describe("image", f"at least {self.size} pixels a side", got, fix))
        top, left = _draw(height, generator), _draw(width, generator)
        return _window(image, self.padding, (top, left), (self.size, self.size))


@dataclass(frozen=True)
class RandomShift:
    """Move the image by up to `pixels` up or down and left or right; black fills the gap.

    Draws: the vertical shift, then the horizontal one.
    """

    pixels: int

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """The shifted image, of unchanged size."""
        top, left = _draw(2 * self.pixels, generator), _draw(2 * self.pixels, generator)
        height, width = image.shape[-2:]
        return _window(image, self.pixels, (top, left), (height, width))


@dataclass(frozen=True)
class HorizontalFlip:
    """Mirror left to right with probability `p`."""

    p: float = 0.5

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """The mirrored image, or the same tensor."""
        if torch.rand((), generator=generator).item() >= self.p:
            return image
        return geometry.horizontal_flip_image(image)


@dataclass(frozen=True)
class Compose:
    """Apply `steps` from first to last, all with one generator."""

    steps: tuple[Transform, ...]

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """The image after the last step."""
        for step in self.steps:
            image = step(image, generator)
        return image


def evaluation_transform(size: int) -> Transform:
    """Resize and centre crop to `size`; above 64 pixels over a margin of 256/224 (RoLI)."""
    return Compose((Resize(_resize_to(size)), CenterCrop(size)))


def training_transform(size: int) -> Transform:
    """RoLI's Resize(256/224 * size), RandomCrop(size), flip; up to 64 pixels padding 4 and flip."""
    padding = SMALL_PADDING if size <= SMALL else 0
    return Compose((Resize(_resize_to(size)), RandomCrop(size, padding), HorizontalFlip()))


def _resize_to(size: int) -> int:
    return size if size <= SMALL else size * 256 // 224  # 224: 256, 384: 438, 448: 512


def _draw(largest: int, generator: torch.Generator) -> int:
    return int(torch.randint(largest + 1, (), generator=generator).item())


def _window(image: Tensor, padding: int, corner: tuple[int, int], shape: tuple[int, int]) -> Tensor:
    if padding:
        image = geometry.pad_image(image, [padding] * 4)
    return geometry.crop_image(image, *corner, *shape)
