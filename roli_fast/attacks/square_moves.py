"""How the Square attack proposes images: windows of constant change, or of moved mass."""

import math
from bisect import bisect_left
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from roli_fast import ops
from roli_fast.attacks.square_draws import Draws, Proposal
from roli_fast.errors import ArgumentError, describe
from roli_fast.ops.rounding import compute_dtype, per_sample

_SHRINKS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Queries of 10,000 after which the share of changed pixels halves."""

Size = tuple[int, int]


def share_of(query: int, p_init: float, n_queries: int, rescale: bool) -> float:
    """The share of pixels that query number `query` changes (section 3.2 of the paper)."""
    place = int(query / n_queries * 10000) if rescale else query
    return p_init / 2 ** bisect_left(_SHRINKS, place)


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


def canvas(x: Tensor) -> tuple[int, int, int]:
    """Channels, rows and columns of a batch; (B, D) and (B, C, L) have one row.

    Raises:
        ArgumentError: another number of dimensions.
    """
    if x.ndim == 2:
        return 1, 1, x.shape[1]
    if x.ndim == 3:
        return x.shape[1], 1, x.shape[2]
    if x.ndim == 4:
        return x.shape[1], x.shape[2], x.shape[3]
    expected = "a batch (B, C, H, W), (B, C, L) or (B, D)"
    raise ArgumentError(describe("x", expected, f"shape {tuple(x.shape)}"))


@dataclass(frozen=True)
class LinfMoves:
    """Windows that change by 2 eps one way, channel by channel, cut to ball and box.

    Algorithm 2 of the paper; the start is vertical stripes.
    """

    bounds: tuple[float, float]
    channels: int
    image: Size

    def start(self, x: Tensor, eps: float | Tensor, draws: Draws) -> Tensor:
        signs = draws.stripes(self.channels, self.image[1])[:, :, None]
        return self._stepped(x, x, signs, eps, eps)

    def window(self, share: float) -> Size:
        """Rows and columns of a window."""
        return window(share, self.image)

    def propose(
        self, best: Tensor, x: Tensor, eps: float | Tensor, size: Size, proposal: Proposal
    ) -> Tensor:
        """The next images to try."""
        inside = _inside(proposal, 0, size, self.image)
        return self._stepped(best, x, inside * proposal.signs[:, :, None, None], eps, eps * 2)

    def _stepped(
        self, point: Tensor, x: Tensor, signs: Tensor, eps: float | Tensor, size: float | Tensor
    ) -> Tensor:
        full = signs.to(x.dtype).expand(len(x), self.channels, *self.image).reshape(x.shape)
        return ops.linf_step_(point.clone(), full, x, eps=eps, step_size=size, bounds=self.bounds)


@dataclass(frozen=True)
class MassMoves:
    """Windows whose change is moved to another window, in a pattern: l2 (Algorithm 3) and l1.

    The l1 version is that of Croce & Hein, "Mind the box", ICML 2021 (arXiv:2103.01208).

    Args:
        order: 2 or 1.
        bounds: lowest and highest valid pixel.
        channels: of an image.
        image: rows and columns.
        spare: part of eps that stays unused; the original's l1 attack leaves 1e-6.
        cancelled: where pattern and old change sum up to less than this length, the old change is
            dropped: what is left of it is rounding errors, which differ from batch to batch. The
            original scales them up.
    """

    order: int
    bounds: tuple[float, float]
    channels: int
    image: Size
    spare: float = 0.0
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
        return self._placed(x, delta, eps)

    def window(self, share: float) -> Size:
        """Rows and columns of a window."""
        return window(share, self.image, smallest=3, odd=True)

    def propose(
        self, best: Tensor, x: Tensor, eps: float | Tensor, size: Size, proposal: Proposal
    ) -> Tensor:
        """The next images to try: what the second window holds moves to the first."""
        dtype = compute_dtype(x.dtype)
        delta = (best.to(dtype) - x.to(dtype)).view(len(x), self.channels, *self.image)
        first = self._index(proposal, 0, size, len(x))
        old = delta[first]
        both = _inside(proposal, 0, size, self.image) | _inside(proposal, 1, size, self.image)
        moved = self._size(torch.where(both, delta, 0.0), (2, 3))
        one, other = self._patterns(size, x)
        new = torch.where(proposal.flip.view(-1, 1, 1, 1), other, one)
        new = new * proposal.signs.to(dtype)[:, :, None, None]
        sum_of_both = new + old / (1e-12 + self._size(old, (2, 3)))
        new = torch.where(self._size(sum_of_both, (2, 3)) < self.cancelled, new, sum_of_both)
        budget = self._budget(self._size(delta, (1, 2, 3)), moved, eps)
        new = new / (1e-12 + self._size(new, (2, 3))) * budget
        delta[self._index(proposal, 1, size, len(x))] = 0.0
        delta[first] = new
        return self._placed(x, delta, eps)

    def _budget(self, length: Tensor, moved: Tensor, eps: float | Tensor) -> Tensor:
        """What each channel of the window may hold: (n, C, 1, 1)."""
        radius = per_sample(eps, length)
        if self.order == 2:
            return ((radius**2 - length**2).clamp(min=0) / self.channels + moved**2).sqrt()
        return ((radius - length).clamp(min=0) / self.channels + moved) * self.channels

    def _placed(self, x: Tensor, delta: Tensor, eps: float | Tensor) -> Tensor:
        """x + delta in ball and box; in l2 scaled to the length eps before it is cut to the box."""
        if self.order == 2:
            scale = per_sample(eps, delta) / (self._size(delta, (1, 2, 3)) + 1e-12)
            moved = (x.to(delta.dtype) + (delta * scale).view(x.shape)).to(x.dtype)
            return ops.l2_project_(moved, x, eps=eps, bounds=self.bounds)
        moved = (x.to(delta.dtype) + delta.view(x.shape)).to(x.dtype)
        return ops.l1_project_(moved, x, eps=eps * (1 - self.spare), bounds=self.bounds)

    def _size(self, delta: Tensor, dims: tuple[int, ...]) -> Tensor:
        if self.order == 2:
            return (delta**2).sum(dims, keepdim=True).sqrt()
        return delta.abs().sum(dims, keepdim=True)

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


def _inside(proposal: Proposal, which: int, size: Size, image: Size) -> Tensor:
    """(m, 1, H, W): which pixels lie in a window."""
    masks = []
    for start, side, length in zip((proposal.top, proposal.left), size, image, strict=True):
        place = torch.arange(length, device=start.device) - start[:, which, None]
        masks.append((place >= 0) & (place < side))
    return (masks[0][:, :, None] & masks[1][:, None, :])[:, None]
