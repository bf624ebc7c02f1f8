"""The random numbers of the Square attack."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor

from roli_fast.ops.random_start import philox
from roli_fast.seeds import derive_seed

CHUNK = 32
"""Queries whose numbers are made at once: a small tensor operation costs its call, not its size."""
_START = 2**40
"""First counter of the numbers for the start; those of queries are below."""


@dataclass(frozen=True)
class Proposal:
    """What one query proposes; rows are samples, or one row for all of them.

    Args:
        top: (m, k) first row of each of k windows.
        left: (m, k) first column.
        signs: (m, C), -1 or 1 for each channel.
        flip: (m,) whether the pattern is transposed.
    """

    top: Tensor
    left: Tensor
    signs: Tensor
    flip: Tensor


class Draws(Protocol):
    """Where one run gets its numbers, for the samples that are still in it."""

    def stripes(self, channels: int, width: int) -> Tensor:
        """(n, C, W) of -1 and 1."""
        ...

    def tiles(self, count: int, channels: int) -> tuple[Tensor, Tensor]:
        """Flips, (m, T) bool, and signs, (n, T, C)."""
        ...

    def query(self, number: int, room: tuple[int, int], channels: int) -> Proposal:
        """Windows that have `room` (rows, columns) to move, numbers 0 up to and with it."""
        ...

    def keep(self, index: Tensor) -> None:
        """Only these of the samples go on."""
        ...


class SampleDraws:
    """Philox words keyed by the run and counted by (query, sample id): the same in any batch.

    Args:
        key: names the run; restarts have different ones.
        ids: int64 (n,), names of the samples.
    """

    def __init__(self, key: tuple[int | str, ...], ids: Tensor) -> None:
        self._key = torch.tensor(derive_seed(*key), device=ids.device)
        self._ids = ids
        self._table = torch.empty(0, device=ids.device)
        self._first, self._width = -1, 0

    def stripes(self, channels: int, width: int) -> Tensor:
        return self._bits(_START, channels * width).view(-1, channels, width)

    def tiles(self, count: int, channels: int) -> tuple[Tensor, Tensor]:
        bits = self._bits(_START, count * (channels + 1)).view(-1, count, channels + 1)
        return bits[..., 0] > 0, bits[..., 1:]

    def query(self, number: int, room: tuple[int, int], channels: int) -> Proposal:
        blocks = 1 + (5 + (channels + 31) // 32 - 1) // 4
        chunk = number // CHUNK
        if chunk != self._first or blocks != self._width:
            self._first, self._width = chunk, blocks
            words = self._words(chunk * CHUNK * blocks, CHUNK * blocks)
            self._table = words.view(-1, CHUNK, 4 * blocks)
        words = self._table[:, number % CHUNK]
        # a word of 32 bits times the number of places: its upper half is the place
        top = (words[:, 0:2] * (room[0] + 1)) >> 32
        left = (words[:, 2:4] * (room[1] + 1)) >> 32
        return Proposal(top, left, _signs(words[:, 5:], channels), (words[:, 4] & 1) == 1)

    def keep(self, index: Tensor) -> None:
        self._ids = self._ids[index]
        if self._first >= 0:
            self._table = self._table[index]

    def _bits(self, first: int, count: int) -> Tensor:
        return _signs(self._words(first, (count + 127) // 128), count)

    def _words(self, first: int, blocks: int) -> Tensor:
        """(n, 4 blocks) words of 32 bits."""
        counters = torch.arange(first, first + blocks, device=self._ids.device)
        low = counters.expand(len(self._ids), -1)
        drawn = philox(self._key, low, self._ids[:, None].expand_as(low))
        return torch.stack(drawn, dim=2).flatten(1)


def _signs(words: Tensor, count: int) -> Tensor:
    """(n, w) words of 32 bits -> (n, count) of -1 and 1, one of each bit."""
    places = torch.arange(32, device=words.device)
    bits = (words[:, :, None] >> places) & 1
    return (bits.flatten(1)[:, :count] * 2 - 1).to(torch.float32)


def one_number(generator: Generator | None, device: torch.device) -> int:
    """One 62-bit draw of the generator, or of torch's global one: it names all that follows."""
    return int(torch.randint(2**62, (1,), generator=generator, device=device))
