"""Transforms of uint8 images, and the numbers that the random ones take.

A transform is called with images uint8 (B, C, H, W) and `uniform` numbers (B, its `draws`), one row
an image, and gives images of the same type. A batch gives bit for bit what its images give one by
one. The resizing is torchvision's.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.v2 import functional as geometry

from roli_fast import ops
from roli_fast.errors import DataError, describe
from roli_fast.seeds import derived_generator

SMALL = 64  # images up to this size are padded and cropped, larger ones resized and cropped
SMALL_PADDING = 4


class Transform(Protocol):
    """Images in, images out; uint8, channels first, any height and width."""

    @property
    def draws(self) -> int:
        """How many numbers it takes for each image."""
        ...

    def __call__(self, images: Tensor, uniform: Tensor) -> Tensor:
        """The transformed images; everything random about them comes from `uniform`."""
        ...


def uniform_draws(seed: int, epoch: int, ids: Tensor, count: int) -> Tensor:
    """`count` numbers for each of `ids`, float64 (B, count) in (0, 1), on the CPU.

    They are a function of (seed, epoch, sample id) alone, the draws of the random starts
    (`ops.linf_random_start`: Philox, keyed by seed and epoch, counted by the sample's id), so all
    samples of a batch draw at once, and each of them what it would draw alone.
    """
    zeros = torch.zeros(len(ids), count)
    if count == 0:
        return zeros.double()
    key = derived_generator("augment", seed, epoch)
    signed = ops.linf_random_start(
        zeros, eps=1.0, bounds=(-1.0, 1.0), generator=key, sample_ids=ids
    )
    return (signed.double() + 1.0) / 2.0  # exact: odd multiples of 2^-25


@dataclass(frozen=True)
class Resize:
    """Scale so that the short side has `size` pixels (bilinear, antialiased)."""

    size: int

    draws = 0

    def __call__(self, images: Tensor, uniform: Tensor) -> Tensor:
        """The scaled images; those given when the short side fits already."""
        if min(images.shape[-2:]) == self.size:
            return images
        return geometry.resize_image(images, [self.size], antialias=True)


@dataclass(frozen=True)
class CenterCrop:
    """Cut the central `size` x `size` pixels."""

    size: int

    draws = 0

    def __call__(self, images: Tensor, uniform: Tensor) -> Tensor:
        """The crop, a view where possible."""
        return geometry.center_crop_image(images, [self.size, self.size])


@dataclass(frozen=True)
class RandomCrop:
    """Add `padding` black pixels on each side, then cut `size` x `size` at a uniform place.

    Draws: top, then left.
    """

    size: int
    padding: int = 0

    draws = 2

    def __call__(self, images: Tensor, uniform: Tensor) -> Tensor:
        """The crop. Raises DataError when the padded image is smaller than the crop."""
        height, width = (side + 2 * self.padding - self.size for side in images.shape[-2:])
        if min(height, width) < 0:
            got = f"{images.shape[-2]}x{images.shape[-1]}"
            fix = "Put Resize before RandomCrop."
            raise DataError(describe("image", f"at least {self.size} pixels a side", got, fix))
        top, left = _below(uniform[:, 0], height + 1), _below(uniform[:, 1], width + 1)
        return _windows(images, top, left, (self.size, self.size), self.padding)


@dataclass(frozen=True)
class RandomShift:
    """Move the image by up to `pixels` up or down and left or right; black fills the gap.

    Draws: the vertical shift, then the horizontal one.
    """

    pixels: int

    draws = 2

    def __call__(self, images: Tensor, uniform: Tensor) -> Tensor:
        """The shifted images, of unchanged size."""
        top, left = (_below(uniform[:, axis], 2 * self.pixels + 1) for axis in (0, 1))
        return _windows(images, top, left, tuple(images.shape[-2:]), self.pixels)


@dataclass(frozen=True)
class HorizontalFlip:
    """Mirror left to right with probability `p`."""

    p: float = 0.5

    draws = 1

    def __call__(self, images: Tensor, uniform: Tensor) -> Tensor:
        """Some of the images mirrored."""
        return torch.where(uniform[:, :1, None, None] < self.p, images.flip(-1), images)


@dataclass(frozen=True)
class Compose:
    """Apply `steps` from first to last; each draws after those before it."""

    steps: tuple[Transform, ...]

    @property
    def draws(self) -> int:
        """As many as its steps."""
        return sum(step.draws for step in self.steps)

    def __call__(self, images: Tensor, uniform: Tensor) -> Tensor:
        """The images after the last step."""
        taken = 0
        for step in self.steps:
            images = step(images, uniform[:, taken : taken + step.draws])
            taken += step.draws
        return images


def evaluation_transform(size: int) -> Transform:
    """Resize and centre crop to `size`; above 64 pixels over a margin of 256/224 (RoLI)."""
    return Compose((Resize(_resize_to(size)), CenterCrop(size)))


def training_transform(size: int) -> Transform:
    """RoLI's Resize(256/224 * size), RandomCrop(size), flip; up to 64 pixels padding 4 and flip."""
    padding = SMALL_PADDING if size <= SMALL else 0
    return Compose((Resize(_resize_to(size)), RandomCrop(size, padding), HorizontalFlip()))


def _resize_to(size: int) -> int:
    return size if size <= SMALL else size * 256 // 224  # 224: 256, 384: 438, 448: 512


def _below(uniform: Tensor, count: int) -> Tensor:
    """One integer a sample in [0, count), int64 (B,)."""
    return (uniform * count).long()


def _windows(
    images: Tensor, top: Tensor, left: Tensor, size: tuple[int, ...], padding: int
) -> Tensor:
    """`size` pixels of the padded images from the corners `top` and `left`, int64 (B,)."""
    if padding:
        images = functional.pad(images, [padding] * 4)
    index = [torch.arange(count, device=images.device) for count in (*images.shape[:2], *size)]
    sample, channel = index[0].view(-1, 1, 1, 1), index[1].view(1, -1, 1, 1)
    rows, columns = top[:, None] + index[2], left[:, None] + index[3]
    return images[sample, channel, rows[:, None, :, None], columns[:, None, None, :]]
