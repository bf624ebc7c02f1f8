"""What stands in front of a backbone so that an attack works on plain pixels."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from roli_fast.errors import ArgumentError, describe


class Normalize(nn.Module):
    """(x - mean) / std per channel, for images (B, C, H, W) in [0, 1].

    Args:
        mean: mean of each channel, in [0, 1] units.
        std: standard deviation of each channel, > 0.

    Raises:
        ArgumentError: `mean` and `std` do not fit, or images with another number of channels.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or not all(value > 0 for value in std):
            expected = f"{len(mean)} numbers > 0, as many as mean has"
            raise ArgumentError(describe("std", expected, tuple(std)))
        for name, values in (("mean", mean), ("std", std)):
            buffer = torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)
            self.register_buffer(name, buffer, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        channels = self.mean.shape[:1]
        if x.shape[-3:-2] != channels:  # a gray image would broadcast to three channels unnoticed
            expected = f"images (B, {channels[0]}, H, W)"
            raise ArgumentError(describe("x", expected, f"shape {tuple(x.shape)}"))
        return (x - self.mean) / self.std


class Resize(nn.Module):
    """Bilinear resize to `size` x `size`, inside the model: the attack sees the original pixels."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        side = (self.size, self.size)
        if x.shape[-2:] == side:
            return x
        return functional.interpolate(x, size=side, mode="bilinear", align_corners=False)
