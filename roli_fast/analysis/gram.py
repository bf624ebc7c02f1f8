"""Inner products of gradients of many logits, block by block of parameters: no Jacobian is kept."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from roli_fast.analysis.derivatives import Network


class Piece(NamedTuple):
    """Entries [start, stop) of a flattened parameter."""

    name: str
    start: int
    stop: int

    @property
    def width(self) -> int:
        """How many entries."""
        return self.stop - self.start


Block = list[Piece]


def whole(net: Network) -> list[Piece]:
    """All entries of all tensors that move."""
    return [Piece(name, 0, value.numel()) for name, value in net.parameters.items()]


def blocks(pieces: Sequence[Piece], width: int) -> Iterator[Block]:
    """The pieces in order, in blocks of at most `width` entries; a long piece is cut."""
    block: Block = []
    room = width
    for name, start, stop in pieces:
        while start < stop:
            taken = min(room, stop - start)
            block.append(Piece(name, start, start + taken))
            start, room = start + taken, room - taken
            if not room:
                yield block
                block, room = [], width
    if block:
        yield block


def block_width(rows: int, itemsize: int, memory: int) -> int:
    """Parameters in a block whose gradients, of so many rows, take 3/4 of `memory`; at least one.

    The rest is for those of one input before the block's share is taken.
    """
    return max(1, memory // 4 * 3 // (rows * itemsize))


def passes(rows: int, itemsize: int, parameters: int, memory: int) -> int:
    """How many blocks so many parameters make."""
    return math.ceil(parameters / block_width(rows, itemsize, memory))


def gram(  # noqa: PLR0913 - each is independent of the others
    net: Network,
    x: Tensor,
    weights: Tensor,
    *,
    memory: int,
    pieces: Sequence[Piece] | None = None,
    after_batch: Callable[[int], None] | None = None,
) -> Tensor:
    """<J_a, J_b> of all rows a, b: the gradients of weights[k] . logits(x[n]), row n * K + k.

    Each block costs one forward of every input and K backwards, batched, whatever it holds.

    Args:
        net: the network.
        x: inputs (N, ...).
        weights: combinations of logits, (K, C); the identity for every logit.
        memory: bytes for the gradients of a block.
        pieces: which parameters; None is all that move.
        after_batch: called with 1 after each input of each block.

    Returns:
        (N K, N K), symmetric, in the model's dtype and on its device.
    """
    count = len(x) * len(weights)
    total = weights.new_zeros(count, count)
    parts = whole(net) if pieces is None else pieces
    for block in blocks(parts, block_width(count, total.element_size(), memory)):
        rows = total.new_empty(count, sum(piece.width for piece in block))
        for number in range(len(x)):
            place = number * len(weights)
            for run in _rows(net, x[number : number + 1], weights, block, memory // 4):
                rows[place : place + len(run)] = run
                place += len(run)
            if after_batch:
                after_batch(1)
        for part in _strips(count):  # what lies left of a strip's diagonal is known by symmetry
            total[part, part.start :].addmm_(rows[part], rows[part.start :].t())
    for part in _strips(count):
        total[part.stop :, part] = total[part, part.stop :].t()
    return total


def _strips(rows: int) -> list[slice]:
    """All rows, in up to eight runs."""
    step = max(1, math.ceil(rows / 8))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def _rows(net: Network, x: Tensor, weights: Tensor, block: Block, memory: int) -> Iterator[Tensor]:
    """Rows (k, width) of one input, so many combinations at a time."""
    names = list(dict.fromkeys(piece.name for piece in block))
    each = sum(net.parameters[name].numel() for name in names) * weights.element_size()
    for run in weights.split(max(1, memory // each)):
        found = net.rows(x, run, names)
        yield torch.cat([found[name].flatten(1)[:, i:j] for name, i, j in block], dim=1)
