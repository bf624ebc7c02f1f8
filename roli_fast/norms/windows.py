"""How the Square attack proposes images: windows, patterns in them, and mass that is moved."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from roli_fast.ops.rounding import compute_dtype

Size = tuple[int, int]
"""Rows and columns."""


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


@dataclass(frozen=True)
class Moves:
    """How Square changes its images (arXiv:1912.00049).

    Args:
        bounds: lowest and highest valid pixel.
        channels: of an image.
        image: its rows and columns.
    """

    bounds: tuple[float, float]
    channels: int
    image: Size

    def start(self, x: Tensor, eps: float | Tensor, draws: Draws) -> Tensor:
        """Where a run begins."""
        raise NotImplementedError

    def window(self, share: float) -> Size:
        """Rows and columns of a window that covers this share of an image."""
        raise NotImplementedError

    def propose(
        self, best: Tensor, x: Tensor, eps: float | Tensor, size: Size, proposal: Proposal
    ) -> Tensor:
        """The next images to try, from the best so far."""
        raise NotImplementedError


@dataclass(frozen=True)
class MassMoves(Moves):
    """Windows whose change is moved to another window, in a pattern.

    Args:
        cancelled: where pattern and old change sum up to less than this length, the old change is
            dropped: what is left of it is rounding errors, which differ from batch to batch. The
            original scales them up.
    """

    order: ClassVar[int]
    """p of the norm, 1 or 2."""

    cancelled: float = 1e-3

    def start(self, x: Tensor, eps: float | Tensor, draws: Draws) -> Tensor:
        """Tiles of the pattern, a fifth of the image wide."""
        height, width = self.image
        fifth = min(self.image) // 5
        size = (fifth, fifth) if fifth else (max(height // 5, 1), max(width // 5, 1))
        rows, columns = height // size[0], width // size[1]
        flips, signs = draws.tiles(rows * columns, self.channels)
        shape = (-1, rows, columns, 1, 1)
        one, other = self._patterns(size, x)
        tiles = torch.where(flips.view(shape), other, one)[:, None]  # (m, 1, rows, columns, h, w)
        tiles = tiles * signs.to(one.dtype).transpose(1, 2).reshape(len(x), -1, *shape[1:])
        block = tiles.transpose(3, 4).reshape(len(x), -1, rows * size[0], columns * size[1])
        delta = block.new_zeros(len(x), self.channels, height, width)
        top, left = (height - block.shape[2]) // 2, (width - block.shape[3]) // 2
        delta[:, :, top : top + block.shape[2], left : left + block.shape[3]] = block
        low, high = self.bounds  # a pattern has length 1 where pixels are in [0, 1]
        return self.placed(x, delta * (high - low), eps)

    def window(self, share: float) -> Size:
        """A side is odd and at least 3, where there is room."""
        return window(share, self.image, smallest=3, odd=True)

    def propose(
        self, best: Tensor, x: Tensor, eps: float | Tensor, size: Size, proposal: Proposal
    ) -> Tensor:
        """The next images to try: what the second window holds moves to the first."""
        dtype = compute_dtype(x.dtype)
        delta = (best.to(dtype) - x.to(dtype)).view(len(x), self.channels, *self.image)
        first = self._index(proposal, 0, size, len(x))
        old = delta[first]
        both = inside(proposal, 0, size, self.image) | inside(proposal, 1, size, self.image)
        moved = self.length(torch.where(both, delta, 0.0), (2, 3))
        one, other = self._patterns(size, x)
        new = torch.where(proposal.flip.view(-1, 1, 1, 1), other, one)
        new = new * proposal.signs.to(dtype)[:, :, None, None]
        sum_of_both = new + old / (1e-12 + self.length(old, (2, 3)))
        new = torch.where(self.length(sum_of_both, (2, 3)) < self.cancelled, new, sum_of_both)
        budget = self.budget(self.length(delta, (1, 2, 3)), moved, eps)
        new = new / (1e-12 + self.length(new, (2, 3))) * budget
        delta[self._index(proposal, 1, size, len(x))] = 0.0
        delta[first] = new
        return self.placed(x, delta, eps)

    def length(self, delta: Tensor, dims: tuple[int, ...]) -> Tensor:
        """The norm of a change (n, C, H, W) over these dimensions, which stay as 1."""
        raise NotImplementedError

    def budget(self, length: Tensor, moved: Tensor, eps: float | Tensor) -> Tensor:
        """What each channel of a window may hold, (n, C, 1, 1): its share of what the whole change
        of this `length` leaves unused, and what is `moved`."""
        raise NotImplementedError

    def placed(self, x: Tensor, delta: Tensor, eps: float | Tensor) -> Tensor:
        """x + delta in ball and box."""
        raise NotImplementedError

    def _patterns(self, size: Size, x: Tensor) -> tuple[Tensor, Tensor]:
        """The pattern and its transpose; a window that is no square has the one only."""
        one = torch.tensor(pattern(size, self.order), dtype=torch.float64)
        one = one.to(device=x.device, dtype=compute_dtype(x.dtype))
        return one, one.t() if size[0] == size[1] else one

    def _index(self, proposal: Proposal, which: int, size: Size, count: int) -> tuple[Tensor, ...]:
        """Indices of a window's entries in (n, C, H, W)."""
        device = proposal.top.device
        top = proposal.top[:, which, None] + torch.arange(size[0], device=device)
        left = proposal.left[:, which, None] + torch.arange(size[1], device=device)
        return (
            torch.arange(count, device=device)[:, None, None, None],
            torch.arange(self.channels, device=device)[None, :, None, None],
            top[:, None, :, None],
            left[:, None, None, :],
        )


def window(share: float, image: Size, *, smallest: int = 1, odd: bool = False) -> Size:
    """Rows and columns of a window that covers this share of an image.

    A square where one fits, else as wide as the shorter side of the image allows.
    """
    area, short, long = share * image[0] * image[1], min(image), max(image)
    side = max(round(math.sqrt(area)), smallest)
    if side <= short:
        side = min(_odd(side, odd), short)
        return side, side
    other = min(_odd(max(round(area / short), smallest), odd), long)
    return (short, other) if image[0] == short else (other, short)


def _odd(side: int, odd: bool) -> int:
    return side + 1 if odd and side % 2 == 0 else side


@lru_cache(maxsize=64)
def pattern(size: Size, order: int) -> list[list[float]]:
    """Two halves of opposite sign, each highest at its centre; their lengths add up to 1.

    Figure 2 of the paper. The longer side is cut (the rows of a square).
    """
    rows, columns = size
    if rows < columns:
        return [list(row) for row in zip(*pattern((columns, rows), order), strict=True)]
    half = torch.zeros(rows, columns, dtype=torch.float64)
    half[: rows // 2] = _pyramid(rows // 2, columns, order)
    half[rows // 2 :] = -_pyramid(rows - rows // 2, columns, order)
    return (half / torch.linalg.vector_norm(half, order)).tolist()


def _pyramid(rows: int, columns: int, order: int) -> Tensor:
    """A pixel at distance m (of rings) from the centre: the sum over k > m of k^-2 (l1: k^-4)."""
    far = max(rows // 2, columns // 2) + 1
    heights = torch.arange(1, far + 1, dtype=torch.float64) ** (-2.0 * (3 - order))
    below = heights.flip(0).cumsum(0).flip(0)
    down = (torch.arange(rows) - rows // 2).abs()[:, None]
    across = (torch.arange(columns) - columns // 2).abs()[None, :]
    hill = below[torch.maximum(down, across)]
    return hill / torch.linalg.vector_norm(hill, order) if hill.numel() else hill


def inside(proposal: Proposal, which: int, size: Size, image: Size) -> Tensor:
    """(m, 1, H, W): which pixels lie in a window."""
    masks = []
    for start, side, length in zip((proposal.top, proposal.left), size, image, strict=True):
        place = torch.arange(length, device=start.device) - start[:, which, None]
        masks.append((place >= 0) & (place < side))
    return (masks[0][:, :, None] & masks[1][:, None, :])[:, None]
