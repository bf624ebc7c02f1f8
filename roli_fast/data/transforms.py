"""What happens to images between their file and the network, and the numbers that augmentation
takes. The resizing is torchvision's."""

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


class Transform(Protocol):
    """Images in, images out: uint8 (B, C, H, W). A batch gives what its images give one by one."""

    @property
    def draws(self) -> int:
        """How many numbers it takes for each image."""
        ...

    def __call__(self, images: Tensor, uniform: Tensor) -> Tensor:
        """The transformed images; all that is random comes from `uniform`, (B, draws) in (0, 1)."""
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
class Crop:
    """Squares of `size` pixels, cut from images that may be scaled and padded before.

    Args:
        size: height and width of what comes out.
        resize: the short side is scaled to it first (bilinear, antialiased); None leaves it.
        padding: black pixels added on each side.
        random: cut at a uniform place instead of the middle. Draws: top, left, mirrored.
        flip: with `random`, the probability that left and right are swapped.
    """

    size: int
    resize: int | None = None
    padding: int = 0
    random: bool = False
    flip: float = 0.0

    @property
    def draws(self) -> int:
        return 3 if self.random else 0

    def __call__(self, images: Tensor, uniform: Tensor) -> Tensor:
        """The squares. Raises DataError when a padded image is smaller than they are."""
        if self.resize and self.resize != min(images.shape[-2:]):
            images = geometry.resize_image(images, [self.resize], antialias=True)
        if self.padding:
            images = functional.pad(images, [self.padding] * 4)
        if not self.random:
            return geometry.center_crop_image(images, [self.size, self.size])
        height, width = (side - self.size for side in images.shape[-2:])
        if min(height, width) < 0:
            got = f"{images.shape[-2]}x{images.shape[-1]}"
            raise DataError(describe("image", f"at least {self.size} pixels a side", got))
        top, left = ((u * (n + 1)).long() for u, n in zip(uniform.T, (height, width), strict=False))
        images = _windows(images, top, left, self.size)
        return torch.where(uniform[:, 2, None, None, None] < self.flip, images.flip(-1), images)


def evaluation_transform(size: int) -> Transform:
    """Resize and centre crop to `size`; above 64 pixels over a margin of 256/224 (RoLI)."""
    return Crop(size, _resize_to(size))


def training_transform(size: int) -> Transform:
    """RoLI's Resize(256/224 * size), RandomCrop(size), flip; up to 64 pixels padding 4 and flip."""
    return Crop(size, _resize_to(size), 4 if size <= SMALL else 0, random=True, flip=0.5)


def _resize_to(size: int) -> int:
    return size if size <= SMALL else size * 256 // 224  # 224: 256, 384: 438, 448: 512


def _windows(images: Tensor, top: Tensor, left: Tensor, size: int) -> Tensor:
    """`size` x `size` pixels of each image from its own corner `top`, `left`, int64 (B,)."""
    index = [torch.arange(count, device=images.device) for count in (*images.shape[:2], size)]
    sample, channel = index[0].view(-1, 1, 1, 1), index[1].view(1, -1, 1, 1)
    rows, columns = top[:, None] + index[2], left[:, None] + index[2]
    return images[sample, channel, rows[:, None, :, None], columns[:, None, None, :]]
