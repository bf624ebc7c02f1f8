"""Changes made by processing: brightness, contrast, warping, coarse pixels and compression."""

import torch
from torch import Generator, Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as geometry

from roli_fast.data.corruptions import filters
from roli_fast.data.corruptions.base import corruption, to_float, to_uint8

PUBLISHED_SIDE = 224
ELASTIC_UNIT = 244 / PUBLISHED_SIDE  # the published code says 244 where 224 was meant


@corruption("digital", large=(0.4, 0.3, 0.2, 0.1, 0.05), small=(0.75, 0.5, 0.4, 0.3, 0.15))
def contrast(x: Tensor, generator: Generator, share: float) -> Tensor:
    """Each channel keeps this share of its deviations from its mean over the image."""
    means = x.mean(dim=(1, 2), keepdim=True)
    return (x - means) * share + means


@corruption(
    "digital",
    large=(
        (2 * ELASTIC_UNIT, 0.7 * ELASTIC_UNIT, 0.1 * ELASTIC_UNIT),
        (2 * ELASTIC_UNIT, 0.08 * ELASTIC_UNIT, 0.2 * ELASTIC_UNIT),
        (0.05 * ELASTIC_UNIT, 0.01 * ELASTIC_UNIT, 0.02 * ELASTIC_UNIT),
        (0.07 * ELASTIC_UNIT, 0.01 * ELASTIC_UNIT, 0.02 * ELASTIC_UNIT),
        (0.12 * ELASTIC_UNIT, 0.01 * ELASTIC_UNIT, 0.02 * ELASTIC_UNIT),
    ),
    small=(
        (0, 0, 0.08),
        (0.05, 0.2, 0.07),
        (0.08, 0.06, 0.06),
        (0.1, 0.04, 0.05),
        (0.1, 0.03, 0.03),
    ),
)
def elastic_transform(
    x: Tensor, generator: Generator, strength: float, smooth: float, shift: float
) -> Tensor:
    """Stretched as a whole, then in small regions: an affine map that moves three points by up to
    `shift`, then displacements of `strength` times uniform noise blurred by `smooth`.

    All three are multiples of the short side, as the published code writes them, so that they
    follow the size of the image; at 224 and 32 pixels they are the published lengths. OpenCV
    rounds the places that the affine map reads to 1/32 pixel; here they are exact.
    """
    height, width = x.shape[-2:]
    side = min(height, width)
    rows, columns = (
        axis.float()
        for axis in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    )
    x = filters.sampled(x, *_affine(rows, columns, shift * side, generator), edge="mirror")
    if strength == 0:
        return x
    moves = 2 * torch.rand(2, height, width, generator=generator) - 1
    moves = strength * side * filters.gaussian(moves, smooth * side, edge="symmetric", truncate=3)
    return filters.sampled(x, rows + moves[0], columns + moves[1], edge="symmetric")


def _affine(
    rows: Tensor, columns: Tensor, reach: float, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Where each pixel is read when three points around the middle move by up to `reach`."""
    height, width = rows.shape
    middle = torch.tensor([height // 2, width // 2], dtype=torch.float64)
    arm = max(min(height, width) // 3, 1)
    before = middle + arm * torch.tensor([[1, 1], [1, -1], [-1, -1]], dtype=torch.float64)
    drawn = torch.rand(3, 2, generator=generator, dtype=torch.float64)
    after = before + reach * (2 * drawn - 1)
    system = torch.cat([after, torch.ones(3, 1, dtype=torch.float64)], dim=1)
    back = torch.linalg.solve(system, before).float()  # (row, column, 1) @ back -> (row, column)
    read = torch.stack([rows, columns, torch.ones_like(rows)], dim=-1) @ back
    return read[..., 0], read[..., 1]


@corruption("digital", large=(0.6, 0.5, 0.4, 0.3, 0.25), small=(0.95, 0.9, 0.85, 0.75, 0.65))
def pixelate(x: Tensor, generator: Generator, share: float) -> Tensor:
    """Scaled down to this share of its sides, at least one pixel, and up again, by Pillow's box
    filter."""
    height, width = x.shape[-2:]
    coarse = [max(int(height * share), 1), max(int(width * share), 1)]
    picture = geometry.to_pil_image(to_uint8(x))
    for size in (coarse, [height, width]):
        picture = geometry.resize(picture, size, InterpolationMode.BOX)
    return to_float(geometry.pil_to_tensor(picture))


@corruption("digital", large=(25, 18, 15, 10, 7), small=(80, 65, 58, 50, 40))
def jpeg_compression(x: Tensor, generator: Generator, quality: int) -> Tensor:
    """Compressed as JPEG with `quality` of 100, chroma at half the resolution, and decoded."""
    return to_float(geometry.jpeg(to_uint8(x), quality))
