"""Blur by optics, glass and movement."""

import torch
from torch import Generator, Tensor

from roli_fast.data.corruptions import filters
from roli_fast.data.corruptions.base import corruption


@corruption(
    "blur",
    large=((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    small=((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
)
def defocus_blur(x: Tensor, generator: Generator, radius: float, smooth: float) -> Tensor:
    """Out of focus: the mean over a disk of `radius` pixels, its rim smoothed by `smooth`."""
    return filters.disk(x, radius, smooth)


@corruption(
    "blur",
    large=((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    small=((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
)
def glass_blur(x: Tensor, generator: Generator, sigma: float, reach: int, rounds: int) -> Tensor:
    """Frosted glass: blurred, pixels taken from up to `reach` away in `rounds`, blurred again.

    The published code means to swap pixels. It runs on NumPy views, so what it does is to copy the
    partner over the pixel and leave the partner; this is what made the published images, and it is
    what is done here.
    """
    x = filters.gaussian(x, sigma)
    for _ in range(rounds):
        x = _copied_from_nearby(x, reach, generator)
    return filters.gaussian(x, sigma)


def _copied_from_nearby(x: Tensor, reach: int, generator: Generator) -> Tensor:
    """From the last pixel to the first, each becomes a neighbour as that is by then.

    Offsets are uniform in [-reach, reach); `reach` rows and columns at the edges stay. A pixel that
    takes from one that has had its turn takes what that one took: the chains are followed for all
    pixels at once, in twice as long leaps every time.
    """
    height, width = x.shape[-2:]
    pixels = torch.arange(height * width).view(height, width)
    moving = torch.zeros(height, width, dtype=torch.bool)
    moving[reach + 1 : height - reach + 1, reach + 1 : width - reach + 1] = True
    down, right = torch.randint(-reach, reach, (2, height, width), generator=generator)
    partner = torch.where(moving, pixels + down * width + right, pixels).flatten()
    pixels, moving = pixels.flatten(), moving.flatten()
    had_its_turn = moving & moving[partner] & (partner > pixels)
    last = torch.where(had_its_turn, partner, pixels)
    while not torch.equal(last, further := last[last]):
        last = further
    return x.flatten(1)[:, partner[last]].view_as(x)


@corruption(
    "blur",
    large=((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    small=((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
)
def motion_blur(x: Tensor, generator: Generator, radius: int, sigma: float) -> Tensor:
    """Moved by a camera in a direction within 45 degrees of the horizontal; see `filters.motion`
    for what differs from ImageMagick, which made the published images."""
    return filters.motion(x, radius, sigma, _uniform(-45, 45, generator))


@corruption(
    "blur",
    large=((12, 0.01), (16, 0.01), (11, 0.02), (13, 0.02), (11, 0.03)),
    small=((7, 0.01), (12, 0.01), (16, 0.01), (21, 0.01), (26, 0.01)),
)
def zoom_blur(x: Tensor, generator: Generator, count: int, step: float) -> Tensor:
    """Moved towards the object: the mean of the image and of `count` images zoomed by 1, 1 + step,
    1 + 2 step, ..."""
    total = x.clone()
    for index in range(count):
        total += filters.zoomed(x, 1 + index * step)
    return total / (count + 1)


def _uniform(low: float, high: float, generator: Generator) -> float:
    return low + (high - low) * torch.rand((), generator=generator).item()
