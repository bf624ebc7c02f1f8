"""Filters on float32 images (C, H, W) of any size; each says what it does at the edges.

A separable linear filter is one small matrix a side, so that a kernel longer than the image is no
special case.
"""

import math
from functools import lru_cache

import torch
from torch import Generator, Tensor
from torch.nn import functional as nnf


def outside(index: Tensor, size: int, edge: str) -> Tensor:
    """The pixel in [0, size) that stands for `index`, which may lie anywhere.

    Args:
        index: int64, any shape.
        size: number of pixels.
        edge: "nearest": a a a | a b c; "symmetric": c b a | a b c; "mirror": d c b | a b c d.
    """
    if edge == "nearest" or size == 1:
        return index.clamp(0, size - 1)
    period = 2 * size if edge == "symmetric" else 2 * size - 2
    folded = index % period
    last = period - 1 if edge == "symmetric" else period
    return torch.where(folded < size, folded, last - folded)


def padded(x: Tensor, width: int, edge: str) -> Tensor:
    """`x` with `width` more pixels on each side; see `outside`."""
    rows, columns = (
        outside(torch.arange(-width, size + width), size, edge) for size in x.shape[-2:]
    )
    return x[:, rows][:, :, columns]


def gaussian(x: Tensor, sigma: float, *, edge: str = "nearest", truncate: float = 4.0) -> Tensor:
    """Gaussian blur; the kernel ends at `truncate` sigmas, to the nearest pixel."""
    radius = int(truncate * sigma + 0.5)
    return gaussian_of_radius(x, sigma, radius, edge) if radius else x


def gaussian_of_radius(x: Tensor, sigma: float, radius: int, edge: str) -> Tensor:
    """Gaussian blur with a kernel of 2 `radius` + 1 pixels."""
    height, width = x.shape[-2:]
    vertical = _gaussian_matrix(height, sigma, radius, edge)
    return vertical @ x @ _gaussian_matrix(width, sigma, radius, edge).T


@lru_cache(maxsize=32)
def _gaussian_matrix(size: int, sigma: float, radius: int, edge: str) -> Tensor:
    offsets = torch.arange(-radius, radius + 1)
    kernel = torch.exp(-0.5 * (offsets.double() / sigma) ** 2)
    kernel /= kernel.sum()
    pixels = outside(torch.arange(size)[:, None] + offsets, size, edge)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    return matrix.scatter_add_(1, pixels, kernel.expand(size, -1)).float()


def disk(x: Tensor, radius: float, smooth: float) -> Tensor:
    """Out of focus: the mean over a disk whose rim is smoothed by a Gaussian; edges "mirror"."""
    half, rim = (8, 1) if radius <= 8 else (int(radius), 2)
    squares = torch.arange(-half, half + 1) ** 2
    kernel = (squares[:, None] + squares <= radius**2).float()
    kernel = gaussian_of_radius((kernel / kernel.sum())[None], smooth, rim, "mirror")
    return nnf.conv2d(padded(x, half, "mirror")[:, None], kernel[None])[:, 0]


def motion(x: Tensor, radius: int, sigma: float, degrees: float) -> Tensor:
    """Blur to one side along a line, by whole pixels; edges "nearest".

    ImageMagick's motion blur as its versions since 2010 define it: half a Gaussian over 2 `radius`
    + 1 steps in direction `degrees` (0 to the right, 90 down). In floating point here, in 8 or
    16 bits there.
    """
    steps = 2 * radius + 1
    weights = [math.exp(-0.5 * (step / sigma) ** 2) for step in range(steps)]
    wide, (height, width) = padded(x, steps, "nearest"), x.shape[-2:]
    right, down = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    blurred = torch.zeros_like(x)
    for step, weight in enumerate(weights):
        top, left = steps + math.ceil(step * down - 0.5), steps + math.ceil(step * right - 0.5)
        part = wide[:, top : top + height, left : left + width]
        blurred.add_(part, alpha=weight / sum(weights))
    return blurred


def zoomed(x: Tensor, factor: float) -> Tensor:
    """The middle of `x`, `factor` >= 1 times as large, cut to the size of `x` (bilinear)."""
    shape = x.shape[-2:]
    cut = [math.ceil(side / factor) for side in shape]
    top, left = ((side - kept) // 2 for side, kept in zip(shape, cut, strict=True))
    middle = x[:, top : top + cut[0], left : left + cut[1]]
    size = [round(kept * factor) for kept in cut]
    large = nnf.interpolate(middle[None], size=size, mode="bilinear", align_corners=True)[0]
    top, left = ((side - kept) // 2 for side, kept in zip(size, shape, strict=True))
    return large[:, top : top + shape[0], left : left + shape[1]]


def sampled(x: Tensor, rows: Tensor, columns: Tensor, edge: str) -> Tensor:
    """`x` read at fractional places (H, W), bilinear; `edge` is "symmetric" or "mirror"."""
    corners = edge == "mirror"
    places = []
    for place, size in ((columns, x.shape[-1]), (rows, x.shape[-2])):
        span = max(size - 1, 1) if corners else size
        places.append(2 * place / span - 1 + (0 if corners else 1 / size))
    grid = torch.stack(places, dim=-1).to(x.dtype)[None]
    out = nnf.grid_sample(x[None], grid, padding_mode="reflection", align_corners=corners)
    return out[0]


def plasma(height: int, width: int, decay: float, generator: Generator) -> Tensor:
    """A cloudy height map (height, width) in [0, 1] by the diamond-square rule.

    Computed on a torus whose side is the next power of two, at least 2, scaled there to [0, 1], and
    cut. The noise falls by `decay` squared from one scale to the next finer one.
    """
    side = 2 ** max(1, (max(height, width) - 1).bit_length())
    heights = torch.zeros(side, side, dtype=torch.float64)
    step, noise = side, 1.0

    def jittered(total: Tensor) -> Tensor:
        drawn = torch.rand(total.shape, generator=generator, dtype=torch.float64)
        return total / 4 + noise * (2 * drawn - 1)

    while step >= 2:
        half = step // 2
        corners = heights[::step, ::step]
        pairs = corners + corners.roll(-1, 0)
        middles = jittered(pairs + pairs.roll(-1, 1))
        heights[half::step, half::step] = middles
        above_and_below = middles + middles.roll(1, 0)
        heights[::step, half::step] = jittered(corners + corners.roll(-1, 1) + above_and_below)
        beside = middles + middles.roll(1, 1)
        heights[half::step, ::step] = jittered(corners + corners.roll(-1, 0) + beside)
        step, noise = half, noise / decay**2  # the published code multiplies two noises
    heights -= heights.min()
    return (heights / heights.max())[:height, :width].float()
