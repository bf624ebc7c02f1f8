"""Transforms of uint8 images: pure functions of images and draws, with a repr.

Each takes a batch of images of one size as a `Frame`, and what each image draws. A batch gives bit
for bit what its images give one by one. The resizing is torchvision's.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor
from torchvision.transforms.v2 import functional as geometry

from roli_fast.data.draws import Draws
from roli_fast.data.frame import Frame
from roli_fast.errors import DataError, describe

SMALL = 64  # images up to this size are padded and cropped, larger ones resized and cropped
SMALL_PADDING = 4


class Transform(Protocol):
    """Images in, images out; uint8, channels first, any height and width."""

    @property
    def draws(self) -> int:
        """How many numbers it takes for each image."""
        ...

    def __call__(self, frame: Frame, draws: Draws) -> Frame:
        """Transform the images; every number drawn is one of `draws`."""
        ...


def transformed(transform: Transform, images: Tensor, draws: Draws) -> Tensor:
    """`images`, uint8 (B, C, H, W), after `transform`: uint8 (B, C, h, w)."""
    return transform(Frame(images), draws).pixels()


@dataclass(frozen=True)
class Resize:
    """Scale so that the short side has `size` pixels (bilinear, antialiased)."""

    size: int

    draws = 0

    def __call__(self, frame: Frame, draws: Draws) -> Frame:
        """The scaled images; the same frame when the short side fits already."""
        images = frame.pixels()
        if min(images.shape[-2:]) == self.size:
            return frame
        return Frame(geometry.resize_image(images, [self.size], antialias=True))


@dataclass(frozen=True)
class CenterCrop:
    """Cut the central `size` x `size` pixels."""

    size: int

    draws = 0

    def __call__(self, frame: Frame, draws: Draws) -> Frame:
        """The crop, a view where possible."""
        images = frame.pixels()
        if images.shape[-2:] == (self.size, self.size):
            return frame
        return Frame(geometry.center_crop_image(images, [self.size, self.size]))


@dataclass(frozen=True)
class RandomCrop:
    """Add `padding` black pixels on each side, then cut `size` x `size` at a uniform place.

    Draws: top, then left.
    """

    size: int
    padding: int = 0

    draws = 2

    def __call__(self, frame: Frame, draws: Draws) -> Frame:
        """The crop. Raises DataError when the padded image is smaller than the crop."""
        images = frame.pixels()
        height, width = (side + 2 * self.padding - self.size for side in images.shape[-2:])
        if min(height, width) < 0:
            got = f"{images.shape[-2]}x{images.shape[-1]}"
            fix = "Put Resize before RandomCrop."
            raise DataError(describe("image", f"at least {self.size} pixels a side", got, fix))
        top, left = (draws.below(room + 1) - self.padding for room in (height, width))
        return Frame(images).window(top, left, (self.size, self.size), self.padding)


@dataclass(frozen=True)
class RandomShift:
    """Move the image by up to `pixels` up or down and left or right; black fills the gap.

    Draws: the vertical shift, then the horizontal one.
    """

    pixels: int

    draws = 2

    def __call__(self, frame: Frame, draws: Draws) -> Frame:
        """The shifted images, of unchanged size."""
        images, furthest = frame.pixels(), self.pixels
        top, left = (draws.below(2 * furthest + 1) - furthest for _ in range(2))
        height, width = images.shape[-2:]
        return Frame(images).window(top, left, (height, width), furthest)


@dataclass(frozen=True)
class HorizontalFlip:
    """Mirror left to right with probability `p`."""

    p: float = 0.5

    draws = 1

    def __call__(self, frame: Frame, draws: Draws) -> Frame:
        """Some of the images mirrored."""
        return frame.mirrored(draws.chance(self.p))


@dataclass(frozen=True)
class Compose:
    """Apply `steps` from first to last; each draws after those before it."""

    steps: tuple[Transform, ...]

    @property
    def draws(self) -> int:
        """As many as its steps."""
        return sum(step.draws for step in self.steps)

    def __call__(self, frame: Frame, draws: Draws) -> Frame:
        """The images after the last step."""
        for step in self.steps:
            frame = step(frame, draws)
        return frame


def evaluation_transform(size: int) -> Transform:
    """Resize and centre crop to `size`; above 64 pixels over a margin of 256/224 (RoLI)."""
    return Compose((Resize(_resize_to(size)), CenterCrop(size)))


def training_transform(size: int) -> Transform:
    """RoLI's Resize(256/224 * size), RandomCrop(size), flip; up to 64 pixels padding 4 and flip."""
    padding = SMALL_PADDING if size <= SMALL else 0
    return Compose((Resize(_resize_to(size)), RandomCrop(size, padding), HorizontalFlip()))


def _resize_to(size: int) -> int:
    return size if size <= SMALL else size * 256 // 224  # 224: 256, 384: 438, 448: 512
