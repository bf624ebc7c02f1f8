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
            raise ArgumentError(
                describe("std", f"{len(mean)} numbers > 0, as many as mean has", tuple(std))
            )
        self.register_buffer(
            "mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1), persistent=False
        )
        self.register_buffer(
            "std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1), persistent=False
        )

    def forward(self, x: Tensor) -> Tensor:
        channels = self.mean.shape[:1]
        if x.shape[-3:-2] != channels:  # a gray image would broadcast to three channels unnoticed
            raise ArgumentError(
                describe("x", f"images (B, {channels[0]}, H, W)", f"shape {tuple(x.shape)}")
            )
        return (x - self.mean) / self.std


class Resize(nn.Module):
    """Bilinear resize to `size` x `size`, inside the model: the attack sees the original pixels."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2:] == (self.size, self.size):
            return x
        return functional.interpolate(
            x, size=(self.size, self.size), mode="bilinear", align_corners=False
        )
