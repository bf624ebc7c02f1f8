"""Weather: snow, frost, fog, and the brightness of the day."""

import torch
from torch import Generator, Tensor
from torch.nn import functional as nnf

from roli_fast.data.corruptions import filters
from roli_fast.data.corruptions.base import corruption

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as OpenCV's grey


@corruption("weather", large=(0.1, 0.2, 0.3, 0.4, 0.5), small=(0.05, 0.1, 0.15, 0.2, 0.3))
def brightness(x: Tensor, generator: Generator, amount: float) -> Tensor:
    """The largest channel of each pixel rises by `amount`, to at most 1; hue and saturation stay.

    That is V + amount in HSV. Black becomes grey.
    """
    value = x.amax(dim=0, keepdim=True)
    brighter = (value + amount).clamp(max=1)
    return torch.where(value > 0, x * (brighter / value.clamp(min=1e-6)), brighter)


@corruption(
    "weather",
    large=((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    small=((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
)
def fog(x: Tensor, generator: Generator, density: float, decay: float) -> Tensor:
    """Clouds of a diamond-square plasma, up to `density`, added; then scaled so that the largest
    value can be reached again."""
    largest = x.max()
    height, width = x.shape[-2:]
    clouds = filters.plasma(height, width, decay, generator)
    return (x + density * clouds) * (largest / (largest + density))


@corruption(
    "weather",
    large=(
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    ),
    small=(
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
)
def snow(x: Tensor, generator: Generator, *setting: float) -> Tensor:
    """Flakes driven by the wind over a paler image.

    The setting: mean and deviation of the noise that flakes are made of, its magnification, the
    height above which noise is a flake, radius and sigma of the flakes' motion blur (see
    `filters.motion`, ImageMagick made the published images), and the share of the image's own
    colours. The flakes fall twice, once turned by 180 degrees.
    """
    mean, deviation, size, least, radius, sigma, share = setting
    noise = mean + deviation * torch.randn(1, *x.shape[-2:], generator=generator)
    flakes = filters.zoomed(noise, size)
    flakes = torch.where(flakes < least, 0.0, flakes).clamp(0, 1)
    degrees = -135 + 90 * torch.rand((), generator=generator).item()
    flakes = filters.motion(flakes, int(radius), sigma, degrees)
    weights = torch.tensor(LUMA if len(x) == 3 else (1.0,)).reshape(-1, 1, 1)
    grey = (x * weights).sum(dim=0, keepdim=True)
    paler = share * x + (1 - share) * torch.maximum(x, grey * 1.5 + 0.5)
    return paler + flakes + flakes.flip(1, 2)


@corruption(
    "weather",
    large=((1, 0.4, 1), (0.8, 0.6, 1), (0.7, 0.7, 1), (0.65, 0.7, 1), (0.6, 0.75, 1)),
    small=((1, 0.2, 5), (1, 0.3, 5), (0.9, 0.4, 5), (0.85, 0.4, 5), (0.75, 0.45, 5)),
)
def frost(x: Tensor, generator: Generator, share: float, ice: float, finer: int) -> Tensor:
    """`share` of the image plus `ice` of a picture of ice crystals.

    NOT COMPARABLE with published numbers: there the ice is cut from five photographs, which this
    package does not ship. Here it is drawn (`ice_crystals`); the published weights of image and ice
    are kept, and so is that small images see the ice `finer` times smaller.
    """
    height, width = x.shape[-2:]
    crystals = ice_crystals(height * finer, width * finer, generator)
    crystals = nnf.avg_pool2d(crystals, finer)
    if len(x) == 1:
        crystals = (crystals * torch.tensor(LUMA).view(3, 1, 1)).sum(dim=0, keepdim=True)
    return share * x + ice * crystals


def ice_crystals(height: int, width: int, generator: Generator) -> Tensor:
    """A drawn window pane with frost, (3, height, width) in [0, 1], bluish white on dark.

    Veins are the ridges of three plasmas, needles are sparse points drawn out in the six
    directions of ice, and a smooth plasma decides where the frost is thick.
    """
    thick = filters.plasma(height, width, 1.5, generator)
    veins = torch.zeros(height, width)
    for decay, weight in ((1.4, 0.45), (1.3, 0.35), (1.2, 0.3)):
        ridges = 1 - (2 * filters.plasma(height, width, decay, generator) - 1).abs()
        veins += weight * ridges**4
    needles = torch.zeros(1, height, width)
    turn = 60 * torch.rand((), generator=generator).item()
    for index in range(6):
        points = (torch.rand(1, height, width, generator=generator) < 0.004).float()
        drawn = filters.motion(points, 14, 9.0, turn + 60 * index)
        needles = torch.maximum(needles, 6 * drawn)
    pane = (0.15 + thick * (0.35 + veins) + 0.45 * thick * needles[0].clamp(0, 1)).clamp(0, 1)
    white = torch.tensor([1.0, 1.0, 1.0]).view(3, 1, 1)
    dark = torch.tensor([0.62, 0.8, 1.0]).view(3, 1, 1)
    return pane * (pane * white + (1 - pane) * dark)
