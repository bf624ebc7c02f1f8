"""The empirical neural tangent kernel of a few inputs, P of the head and F of the backbone.

Entry ((n, c), (m, d)) is the inner product of the gradients of logit c of input n and logit d of
input m. With f(x) = V phi(x) + b it is P + F (Tomihari & Sato 2024, arXiv:2405.16747, proposition
4.1): P = (<phi(x), phi(x')> + 1) I_C by the head's weight and bias, F = V J(x) J(x')^T V^T by the
backbone. `top_eigenvalues` and `one_step` tell of one that is too large to build.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn

from roli_fast.analysis.derivatives import Network, network
from roli_fast.analysis.one_step import descend
from roli_fast.analysis.view import LinearHead
from roli_fast.data import Batch
from roli_fast.errors import ArgumentError, check_choice, describe
from roli_fast.seeds import derived_generator

MEMORY = 2 * 2**30
"""Bytes that a kernel may take, with what it takes to build and to analyse it."""

COPIES = 8
"""A kernel may take 1 / COPIES of the memory. A sum P + F, its decomposition and a mean are as
large again; what is left is for the gradients of a block of parameters."""

Part = Literal["P", "F", "NTK"]


@dataclass(frozen=True)
class Kernel:
    """P and F of N inputs and C logits. Row n * C + c of a matrix is logit c of input n.

    Args:
        P_gram: <phi(x), phi(x')> + 1 (without the 1 where the head has no bias), (N, N).
        F: (N C, N C).
        classes: C.
    """

    P_gram: Tensor = field(repr=False)
    F: Tensor = field(repr=False)
    classes: int

    @property
    def images(self) -> int:
        """N."""
        return len(self.P_gram)

    def matrix(
        self, part: Part = "NTK", rows: Tensor | None = None, columns: Tensor | None = None
    ) -> Tensor:
        """One part between some inputs and others, (rows C, columns C); None is all of them.

        Args:
            part: "P", "F" or "NTK", their sum.
            rows: indices of inputs, int64.
            columns: indices of inputs, int64.
        """
        check_choice("part", part, ("P", "F", "NTK"))
        every = torch.arange(self.images)
        rows, columns = (every if where is None else where for where in (rows, columns))
        whole = self.F.view(self.images, self.classes, self.images, self.classes)
        found = whole[rows][:, :, columns]
        if part == "P":
            found.zero_()
        if part != "F":
            diagonal = torch.diagonal(found, dim1=1, dim2=3)  # (rows, columns, C), a view
            diagonal += self.P_gram[rows][:, columns, None]
        return found.flatten(2).flatten(0, 1)

    def spectrum(self, part: Part = "NTK") -> Tensor:
        """Eigenvalues, largest first, (N C,), fp64 numbers found in the kernel's own dtype; those
        below 0 are rounding, and become 0."""
        if part == "P":
            values = torch.linalg.eigvalsh(self.P_gram).repeat_interleave(self.classes)
        else:
            values = torch.linalg.eigvalsh(self.matrix(part))
        return values.double().flip(0).clamp(min=0)

    def rank(self, part: Part = "NTK", tol: float | None = None) -> int:
        """How many eigenvalues are above `tol` times the largest.

        Args:
            part: "P", "F" or "NTK".
            tol: None is N C times the dtype's eps, below which eigenvalues are rounding.
        """
        values = self.spectrum(part)
        least = len(values) * torch.finfo(self.F.dtype).eps if tol is None else tol
        return int((values > least * values[0]).sum())

    def frobenius(self, part: Part = "NTK") -> float:
        """The root of the sum of squares."""
        if part == "P":
            return float(self.P_gram.double().norm()) * self.classes**0.5
        return float(torch.linalg.vector_norm(self.matrix(part), dtype=torch.float64))


def empirical_ntk(
    model: nn.Module | LinearHead,
    x: Tensor,
    *,
    names: Sequence[str] | None = None,
    memory: int = MEMORY,
    dtype: torch.dtype | None = None,
    after_batch: Callable[[int], None] | None = None,
) -> Kernel:
    """P and F of some inputs at the present weights, in eval mode.

    Gradients of C logits each (V is contracted first, so not of all D features), of one block of
    parameters at a time, as much as fits into `memory`: no Jacobian is stored.

    Args:
        model: inputs (B, ...) -> logits (B, C), with a linear head, or the view of it.
        x: N inputs; attacked ones for the kernel under attack.
        names: the tensors that train; see `one_step`.
        memory: bytes it may take.
        dtype: compute in this dtype, in a copy of the model; None is the model's own. Ranks want
            float64.
        after_batch: called with the number of inputs done, N times 1 + `gradient_passes` in all; a
            progress bar, or a stop.

    Returns:
        The kernel, on the CPU.

    Raises:
        ArgumentError: N x C is above what fits into `memory`; no linear head; no inputs.
    """
    view = LinearHead.of(model)
    check_memory(len(x), view.classes, (dtype or view.layer.weight.dtype).itemsize, memory)
    with network(view, names, dtype) as net:
        weights = torch.eye(view.classes).to(net.head.layer.weight.detach())
        own = _head_gram(net, x, after_batch)
        found = gram(net, x, weights, memory=memory, after_batch=after_batch)
    return Kernel(own.cpu(), found.cpu(), view.classes)


def top_eigenvalues(
    model: nn.Module | LinearHead,
    batches: Iterable[Batch],
    count: int = 10,
    *,
    part: Part = "F",
    names: Sequence[str] | None = None,
    tol: float = 1e-4,
    dtype: torch.dtype | None = None,
    seed: int = 0,
) -> Tensor:
    """The largest eigenvalues of F, or of P + F, by Lanczos; the kernel is never built.

    Each of its products with a vector is one gradient and one Jacobian product of every input.

    Args:
        model: inputs (B, ...) -> logits (B, C), with a linear head.
        batches: the N inputs of the kernel; all are kept for the time of the call.
        count: how many, from 1 to N C - 1.
        part: "F", or "NTK" for P + F. (P alone is a Gram matrix of features.)
        names: the tensors that train; see `one_step`.
        tol: relative accuracy of an eigenvalue.
        dtype: compute in this dtype, in a copy of the model; None is the model's own.
        seed: of the first vector.

    Returns:
        (count,), fp64, largest first.
    """
    check_choice("part", part, ("F", "NTK"))
    view, kept = LinearHead.of(model), list(batches)
    images = sum(len(batch.y) for batch in kept)
    size = images * view.classes
    start = torch.randn(size, generator=derived_generator("lanczos", seed), dtype=torch.float64)
    with network(view, names, dtype) as net:

        def product(vector: np.ndarray) -> np.ndarray:
            return _product(net, kept, torch.from_numpy(vector.reshape(images, -1)), part)

        operator = LinearOperator((size, size), matvec=product, dtype=np.float64)  # pyright: ignore
        values = eigsh(
            operator,
            k=count,
            which="LA",
            v0=start.numpy(),
            tol=tol,  # pyright: ignore[reportArgumentType] - scipy's stubs read the default 0
            return_eigenvectors=False,
        )
    return torch.from_numpy(np.sort(values)[::-1].copy())


def _product(net: Network, batches: list[Batch], vector: Tensor, part: Part) -> np.ndarray:
    """The kernel times a vector (N, C): `descend` with it in place of the residuals, then push."""
    rows = iter(vector.to(net.head.layer.weight).split([len(batch.y) for batch in batches]))
    tangent = descend(net, batches, lambda batch, logits: next(rows)).tangent
    out: list[Tensor] = []
    for batch in batches:
        features, moved = net.push(batch.x, tangent)
        logits = moved @ net.head.layer.weight.detach().t()
        out.append(logits + net.head_part(features, tangent) if part == "NTK" else logits)
    return torch.cat(out).double().cpu().flatten().numpy()


class Piece(NamedTuple):
    """Entries [start, stop) of a flattened parameter."""

    name: str
    start: int
    stop: int


def blocks(pieces: Iterable[Piece], width: int) -> Iterator[list[Piece]]:
    """The pieces in order, in blocks of at most `width` entries; a long piece is cut."""
    block: list[Piece] = []
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


def _room(rows: int, item: int, memory: int) -> int:
    """Bytes for gradients that four kernels of so many rows leave."""
    return memory - 4 * item * rows**2


def _width(rows: int, item: int, memory: int) -> int:
    """Parameters in a block, at least one. Its gradients, of so many rows, take 3/4 of the room;
    the rest is for those of one input before the block's share is taken.
    """
    return max(1, _room(rows, item, memory) // 4 * 3 // (rows * item))


def gradient_passes(rows: int, item: int, parameters: int, memory: int = MEMORY) -> int:
    """How often `gram` goes through its inputs: as many blocks as so many parameters make."""
    return math.ceil(parameters / _width(rows, item, memory))


def gram(
    net: Network,
    x: Tensor,
    weights: Tensor,
    *,
    memory: int = MEMORY,
    pieces: Sequence[Piece] | None = None,
    after_batch: Callable[[int], None] | None = None,
) -> Tensor:
    """<J_a, J_b> of all rows a, b: the gradients of weights[k] . logits(x[n]), row n * K + k.

    Block by block of parameters, so that no Jacobian is kept. Each block costs one forward of every
    input and K backwards, batched, whatever it holds.

    Args:
        net: the network.
        x: inputs (N, ...).
        weights: combinations of logits, (K, C); the identity for every logit.
        memory: bytes for the result, three more of its size, and the gradients of a block.
        pieces: which parameters; None is all that move.
        after_batch: called with 1 after each input of each block.

    Returns:
        (N K, N K), symmetric, in the model's dtype and on its device.
    """
    count, item = len(x) * len(weights), weights.element_size()
    total = weights.new_zeros(count, count)
    if pieces is None:
        pieces = [Piece(name, 0, value.numel()) for name, value in net.parameters.items()]
    for block in blocks(pieces, _width(count, item, memory)):
        rows = total.new_empty(count, sum(stop - start for _, start, stop in block))
        for number in range(len(x)):
            place = number * len(weights)
            one, room = x[number : number + 1], _room(count, item, memory) // 4
            for run in _rows(net, one, weights, block, room):
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


def _rows(
    net: Network, x: Tensor, weights: Tensor, block: list[Piece], memory: int
) -> Iterator[Tensor]:
    """Rows (k, width) of one input, so many combinations at a time."""
    names = list(dict.fromkeys(piece.name for piece in block))
    each = sum(net.parameters[name].numel() for name in names) * weights.element_size()
    for run in weights.split(max(1, memory // each)):
        found = net.rows(x, run, names)
        yield torch.cat([found[name].flatten(1)[:, i:j] for name, i, j in block], dim=1)


def _head_gram(net: Network, x: Tensor, after_batch: Callable[[int], None] | None = None) -> Tensor:
    """<phi(x), phi(x')> + 1 of N inputs, (N, N); without the 1 where the head has no bias."""
    rows: list[Tensor] = []
    for part in x.split(64):
        with torch.no_grad():
            rows.append(net(part)[0])
        if after_batch:
            after_batch(len(part))
    features = torch.cat(rows)
    return features @ features.t() + (net.head.layer.bias is not None)


def most_inputs(classes: int, item: int = 8, memory: int = MEMORY) -> int:
    """How many inputs have a kernel that fits, in numbers of `item` bytes."""
    return int((memory / (COPIES * item)) ** 0.5) // classes


def check_memory(images: int, classes: int, item: int, memory: int) -> None:
    """Raise where the kernel does not fit, with what would."""
    rows = images * classes
    if images and COPIES * item * rows**2 <= memory:
        return
    most = most_inputs(classes, item, memory)
    raise ArgumentError(
        describe(
            "x",
            f"N x C whose kernel takes at most 1/{COPIES} of `memory`, {memory:,} bytes",
            f"{images} inputs x {classes} classes = {rows:,}: {rows**2 * item:,} bytes",
            f"At most {most} inputs of {classes} classes fit: take fewer, or set `memory` to"
            f" {COPIES * rows**2 * item:,}; or use what builds no kernel: one_step or"
            " top_eigenvalues.",
        )
    )
