"""The filters of the corruptions against SciPy, NumPy and loops that follow the definitions."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from tiny_attacks import generator as seeded
from torch import Tensor

from roli_fast.data.corruptions import CORRUPTIONS, blur, filters

EDGES = {"nearest": ("edge", "nearest"), "symmetric": ("symmetric", "reflect")}
EDGES["mirror"] = ("reflect", "mirror")
"""Name here -> (NumPy's, SciPy's)."""


def image(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=seeded(1))


def by_channel(x: Tensor, of_channel: object, *args: object, **options: object) -> Tensor:
    planes = [of_channel(plane.double().numpy(), *args, **options) for plane in x]  # pyright: ignore
    return torch.from_numpy(np.stack(planes)).float()


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("size", [(2, 9), (1, 4)])
def test_padding_is_numpys(edge: str, size: tuple[int, int]) -> None:
    x = image(3, *size)
    expected = np.pad(x.numpy(), ((0, 0), (11, 11), (11, 11)), EDGES[edge][0])
    assert np.array_equal(filters.padded(x, 11, edge).numpy(), expected)


@pytest.mark.parametrize("edge", ["nearest", "symmetric"])
@pytest.mark.parametrize("sigma", [0.25, 1.5, 9.0])
def test_gaussian_is_scipys(edge: str, sigma: float) -> None:
    """Also where the kernel, of 27 pixels to each side, is longer than the image."""
    x = image(3, 15, 23)
    out = filters.gaussian(x, sigma, edge=edge, truncate=3)
    mode = EDGES[edge][1]
    expected = by_channel(x, ndimage.gaussian_filter, sigma, mode=mode, truncate=3)
    assert torch.allclose(out, expected, atol=1e-6)


@pytest.mark.parametrize(("radius", "smooth", "half"), [(6, 0.5, 8), (10, 0.5, 10)])
def test_disk_is_a_convolution(radius: int, smooth: float, half: int) -> None:
    """3 x 3 Gaussian on the disk up to radius 8, 5 x 5 above."""
    squares = np.arange(-half, half + 1) ** 2
    kernel = (squares[:, None] + squares <= radius**2).astype(float)
    reach = 1 if radius <= 8 else 2
    rim = [math.exp(-(step**2) / (2 * smooth**2)) for step in range(-reach, reach + 1)]
    weights = np.outer(rim, rim) / sum(rim) ** 2
    kernel = ndimage.convolve(kernel / kernel.sum(), weights, mode="mirror")
    x = image(3, 30, 25)
    expected = by_channel(x, ndimage.convolve, kernel, mode="mirror")
    assert torch.allclose(filters.disk(x, radius, smooth), expected, atol=1e-5)


@pytest.mark.parametrize("degrees", [17.0, -100.0])
def test_motion_follows_its_definition(degrees: float) -> None:
    """Pixel (r, c) is the sum of k_i x(r + ceil(i sin - 1/2), c + ceil(i cos - 1/2))."""
    x, radius, sigma = image(1, 9, 12)[0], 3, 2.0
    weights = np.exp(-(np.arange(7.0) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    expected = torch.zeros(9, 12)
    for row in range(9):
        for column in range(12):
            for step, weight in enumerate(weights):
                down = math.ceil(step * math.sin(math.radians(degrees)) - 0.5)
                right = math.ceil(step * math.cos(math.radians(degrees)) - 0.5)
                source = min(max(row + down, 0), 8), min(max(column + right, 0), 11)
                expected[row, column] += float(weight) * x[source]
    assert torch.allclose(filters.motion(x[None], radius, sigma, degrees)[0], expected, atol=1e-6)


@pytest.mark.parametrize("factor", [1.0, 1.03, 4.5])
@pytest.mark.parametrize("side", [32, 33])
def test_zoom_is_scipys(factor: float, side: int) -> None:
    """As the published code: the middle ceil(side / factor) pixels, zoomed, trimmed."""
    x = image(3, side, side)
    kept = math.ceil(side / factor)
    start = (side - kept) // 2
    middle = x[:, start : start + kept, start : start + kept]
    large = by_channel(middle, ndimage.zoom, factor, order=1)
    start = (large.shape[1] - side) // 2
    expected = large[:, start : start + side, start : start + side]
    assert torch.allclose(filters.zoomed(x, factor), expected, atol=1e-5)


def test_zoom_blur_takes_the_published_factors() -> None:
    """numpy.arange(1, stop, 0.01): its rounding decides whether the stop is among them."""
    kind = CORRUPTIONS["zoom_blur"]
    published = {
        224: ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
        32: ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
    }
    for side, ranges in published.items():
        for severity, (stop, step) in enumerate(ranges, 1):
            count, found = kind.setting(severity, side)
            factors = [1 + i * found for i in range(int(count))]
            assert factors == pytest.approx(list(np.arange(1, stop, step)))


@pytest.mark.parametrize("edge", ["symmetric", "mirror"])
@pytest.mark.parametrize("size", [(9, 14), (1, 6), (1, 1)])
def test_sampling_is_scipys(edge: str, size: tuple[int, int]) -> None:
    x = image(3, *size)
    rows, columns = 40 * image(2, *size) - 15
    out = filters.sampled(x, rows, columns, edge)
    places = np.stack([rows.double().numpy(), columns.double().numpy()])
    expected = by_channel(x, ndimage.map_coordinates, places, order=1, mode=EDGES[edge][1])
    assert torch.allclose(out, expected, atol=1e-4)


def test_plasma_is_diamond_square() -> None:
    """Point by point on a torus; a point is the mean of four around it plus noise."""
    side, decay, generator = 16, 1.7, seeded(4)
    heights, step, noise = np.zeros((side, side)), side, 1.0

    def mean(*places: tuple[int, int]) -> float:
        return sum(heights[row % side, column % side] for row, column in places) / len(places)

    while step >= 2:
        half, count = step // 2, side // step
        middle, top, left = (
            noise * (2 * torch.rand(count, count, generator=generator, dtype=float) - 1).numpy()
            for _ in range(3)
        )
        at = [(i, j, i * step, j * step) for i in range(count) for j in range(count)]
        for i, j, r, c in at:
            corners = (r, c), (r + step, c), (r, c + step), (r + step, c + step)
            heights[r + half, c + half] = mean(*corners) + middle[i, j]
        for i, j, r, c in at:
            beside = (r - half, c + half), (r + half, c + half)
            heights[r, c + half] = mean((r, c), (r, c + step), *beside) + top[i, j]
            beside = (r + half, c - half), (r + half, c + half)
            heights[r + half, c] = mean((r, c), (r + step, c), *beside) + left[i, j]
        step, noise = half, noise / decay**2
    heights -= heights.min()
    out = filters.plasma(16, 16, 1.7, seeded(4))
    assert np.allclose(out.numpy(), heights / heights.max(), atol=1e-6)
    assert torch.equal(filters.plasma(9, 13, 1.7, seeded(4)), out[:9, :13])


@pytest.mark.parametrize(("height", "width", "reach"), [(12, 12, 1), (20, 15, 2), (30, 33, 4)])
def test_glass_is_the_published_loop(height: int, width: int, reach: int) -> None:
    """The swap of two NumPy views, pixel after pixel from the last: it copies one way only."""
    x = image(3, height, width)
    drawn = torch.randint(-reach, reach, (2, height, width), generator=seeded(6)).numpy()
    pixels = x.permute(1, 2, 0).contiguous().numpy().copy()
    for row in range(height - reach, reach, -1):
        for column in range(width - reach, reach, -1):
            other = row + drawn[0, row, column], column + drawn[1, row, column]
            pixels[row, column], pixels[other] = pixels[other], pixels[row, column]
    out = blur._copied_from_nearby(x, reach, seeded(6))
    assert np.array_equal(out.permute(1, 2, 0).numpy(), pixels)
