"""The numbers that augmentation draws: a function of (seed, epoch, sample id) alone."""

import torch
from torch import Tensor

from roli_fast import ops
from roli_fast.seeds import derived_generator


class Draws:
    """Uniform numbers of the samples in a batch, taken column by column.

    They are the draws of the random starts (`ops.linf_random_start`: Philox, keyed by seed and
    epoch, counted by the sample's id), so all samples of a batch draw at once, and each of them
    what it would draw alone, on every device.

    Args:
        numbers: float64 (B, k), in (0, 1).
    """

    def __init__(self, numbers: Tensor) -> None:
        self._numbers = numbers
        self._taken = 0

    @classmethod
    def of(cls, seed: int, epoch: int, ids: Tensor, count: int) -> "Draws":
        """`count` numbers for each of `ids`, int64 (B,), on the CPU."""
        zeros = torch.zeros(len(ids), count)
        if count == 0:
            return cls(zeros.double())
        key = derived_generator("augment", seed, epoch)
        signed = ops.linf_random_start(
            zeros, eps=1.0, bounds=(-1.0, 1.0), generator=key, sample_ids=ids
        )
        return cls((signed.double() + 1.0) / 2.0)  # exact: odd multiples of 2^-25

    @classmethod
    def none(cls, count: int) -> "Draws":
        """For `count` samples and transforms that draw nothing."""
        return cls(torch.empty(count, 0, dtype=torch.float64))

    def below(self, count: int) -> Tensor:
        """One integer a sample in [0, count), int64 (B,)."""
        return (self._next() * count).long()

    def chance(self, p: float) -> Tensor:
        """One event a sample of probability `p`, bool (B,)."""
        return self._next() < p

    def row(self, index: int) -> "Draws":
        """Those of one sample, from its first number on."""
        return Draws(self._numbers[index : index + 1])

    def to(self, device: torch.device) -> "Draws":
        """The same on `device`; a GPU is not waited for."""
        if device.type != "cuda" or self._numbers.numel() == 0:
            return self
        return Draws(self._numbers.pin_memory().to(device, non_blocking=True))

    def _next(self) -> Tensor:
        self._taken += 1
        return self._numbers[:, self._taken - 1]
