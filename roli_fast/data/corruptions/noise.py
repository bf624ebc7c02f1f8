"""Noise: independent draws for every pixel and channel."""

import torch
from torch import Generator, Tensor

from roli_fast.data.corruptions.base import corruption


@corruption("noise", large=(0.08, 0.12, 0.18, 0.26, 0.38), small=(0.04, 0.06, 0.08, 0.09, 0.10))
def gaussian_noise(x: Tensor, generator: Generator, scale: float) -> Tensor:
    """Normal noise of standard deviation `scale`, as in dim light."""
    return x + scale * torch.randn(x.shape, generator=generator)


@corruption("noise", large=(60, 25, 12, 5, 3), small=(500, 250, 100, 75, 50))
def shot_noise(x: Tensor, generator: Generator, photons: float) -> Tensor:
    """Poisson noise: a white pixel receives `photons` on average."""
    return torch.poisson(x * photons, generator=generator) / photons


@corruption("noise", large=(0.03, 0.06, 0.09, 0.17, 0.27), small=(0.01, 0.02, 0.03, 0.05, 0.07))
def impulse_noise(x: Tensor, generator: Generator, amount: float) -> Tensor:
    """Salt and pepper: a share `amount` of all values becomes 0 or 1, as likely the one as the
    other."""
    hit, salt = torch.rand(2, *x.shape, generator=generator)
    return torch.where(hit < amount, (salt < 0.5).to(x.dtype), x)
