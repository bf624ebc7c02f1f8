"""Draws in the order of the original code, for comparison with it."""

from typing import Literal

import torch
from torch import Generator, Tensor

from roli_fast.errors import ArgumentError, describe

Rng = Literal["sample", "official"]
"""Where draws come from: from a sample's id alone, or in the order of the original's code."""


class OfficialDraws:
    """fp32 draws of a CPU generator, moved to `device`: what the original draws after its reseed.

    Args:
        generator: `torch.Generator().manual_seed(seed)` stands for the original's seed; None takes
            torch's global generator, as the original does, but does not reseed it.
        device: where the numbers are needed.

    Raises:
        ArgumentError: the generator is not on the CPU.
    """

    def __init__(self, generator: Generator | None, device: torch.device) -> None:
        if generator is not None and generator.device.type != "cpu":
            fix = "rng='official' draws on the CPU, as the original does: pass torch.Generator()."
            raise ArgumentError(describe("generator", "one on the CPU", generator.device, fix))
        self._generator, self._device = generator, device

    def uniform(self, *shape: int) -> Tensor:
        """In [0, 1)."""
        drawn = torch.rand(shape, generator=self._generator, dtype=torch.float32)
        return drawn.to(self._device)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal."""
        drawn = torch.randn(shape, generator=self._generator, dtype=torch.float32)
        return drawn.to(self._device)

    def sign(self, *shape: int) -> Tensor:
        """-1 or 1 (0 once in 2^24 times)."""
        return torch.sign(2 * self.uniform(*shape) - 1)

    def below(self, limit: int) -> int:
        """An integer in [0, limit); 0 for a limit of 0."""
        return int(self.uniform(1) * limit)
