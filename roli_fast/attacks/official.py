"""Draws in the order of the original code, for comparison with it."""

from typing import Literal

import torch
from torch import Generator, Tensor

Rng = Literal["native", "official"]
"""Draws by the generator and a sample's id, or in the order of the original's code."""


class OfficialDraws:
    """What the original draws after it has reseeded torch's global generator: fp32, on the CPU.

    A private generator takes its place.

    Args:
        seed: the original's.
        device: where the numbers are needed.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self._generator, self._device = Generator().manual_seed(seed), device

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
