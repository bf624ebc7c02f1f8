"""The empirical neural tangent kernel of a few inputs, P of the head and F of the backbone.

Entry ((n, c), (m, d)) is the inner product of the gradients of logit c of input n and logit d of
input m. With f(x) = V phi(x) + b it is P + F (Tomihari & Sato 2024, arXiv:2405.16747, proposition
4.1): P = (<phi(x), phi(x')> + 1) I_C by the head's weight and bias, F = V J(x) J(x')^T V^T by the
backbone. For anything larger use `one_step`, which never builds it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from roli_fast.analysis.costs import Cost, say
from roli_fast.analysis.derivatives import Network, moving_names, network
from roli_fast.analysis.descent import in_dtype
from roli_fast.analysis.gram import gram, passes
from roli_fast.analysis.view import LinearHead
from roli_fast.errors import ArgumentError, check_choice, describe

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
        y: labels (N,), where they were given.
    """

    P_gram: Tensor = field(repr=False)
    F: Tensor = field(repr=False)
    classes: int
    y: Tensor | None = field(repr=False, default=None)

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
        count, each = self.images, self.classes
        if rows is None and columns is None:
            found = torch.zeros_like(self.F) if part == "P" else self.F.clone()
            found = found.view(count, each, count, each)
        else:
            every = torch.arange(count)
            rows, columns = (every if where is None else where for where in (rows, columns))
            found = self.F.new_zeros(len(rows), each, len(columns), each)
            if part != "P":
                whole = self.F.view(count, each, count, each)
                for place, row in enumerate(rows.tolist()):
                    found[place] = whole[row][:, columns]
        if part != "F":
            own = self.P_gram if rows is None else self.P_gram[rows][:, columns]
            diagonal = torch.diagonal(found, dim1=1, dim2=3)  # (rows, columns, C), a view
            diagonal += own[..., None]
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

    def trace_by_class(self, part: Part = "NTK") -> Tensor:
        """Trace norms of the C x C blocks of pairs of inputs, their means by class, (C, C), fp64.

        Entry (a, b) is over all inputs of labels a and b; NaN where there are none.

        Raises:
            ArgumentError: the kernel was made without labels.
        """
        if self.y is None:
            fix = "Give `y` to `empirical_ntk`."
            raise ArgumentError(describe("y", "labels of the kernel's inputs", None, fix))
        whole = self.matrix(part).view(self.images, self.classes, self.images, self.classes)
        blocks = (row.double().transpose(0, 1) for row in whole)  # (N, C, C) each
        norms = torch.stack([torch.linalg.matrix_norm(row, "nuc") for row in blocks])
        member = torch.nn.functional.one_hot(self.y.cpu(), self.classes).double()
        pairs = member.sum(0)[:, None] * member.sum(0)
        return (member.t() @ norms @ member) / pairs


def empirical_ntk(  # noqa: PLR0913 - one call, and each option is independent of the others
    model: nn.Module | LinearHead,
    x: Tensor,
    y: Tensor | None = None,
    *,
    names: Sequence[str] | None = None,
    memory: int = MEMORY,
    head: str | None = None,
    dtype: torch.dtype | None = None,
    after_batch: Callable[[int], None] | None = None,
) -> Kernel:
    """P and F of some inputs at the present weights, in eval mode.

    Gradients of C logits each (V is contracted first, so not of all D features), of one block of
    parameters at a time, as much as fits into `memory`: no Jacobian is stored.

    Args:
        model: inputs (B, ...) -> logits (B, C), with a linear head.
        x: N inputs; attacked ones for the kernel under attack.
        y: labels (N,), kept for `Kernel.trace_by_class`.
        names: the tensors that train; see `one_step`.
        memory: bytes it may take.
        head: name of the head where it cannot be found.
        dtype: compute in this dtype, in a copy of the model; None is the model's own. Ranks want
            float64.
        after_batch: called with the number of inputs done, `empirical_ntk_cost(...).forwards` in
            all; a progress bar, or a stop.

    Returns:
        The kernel, on the CPU.

    Raises:
        ArgumentError: N x C is above what fits into `memory`; no linear head; no inputs.
    """
    view = LinearHead.of(model, head)
    say(empirical_ntk_cost(view, len(x), names=names, memory=memory, dtype=dtype))
    with network(in_dtype(view, dtype), names) as net:
        weights = torch.eye(view.classes).to(net.head.layer.weight.detach())
        own = head_gram(net, x, after_batch)
        room = room_for_gradients(len(x) * view.classes, weights.element_size(), memory)
        found = gram(net, x, weights, memory=room, after_batch=after_batch)
    return Kernel(own.cpu(), found.cpu(), view.classes, None if y is None else y.cpu())


def empirical_ntk_cost(
    model: nn.Module | LinearHead,
    images: int,
    *,
    names: Sequence[str] | None = None,
    memory: int = MEMORY,
    dtype: torch.dtype | None = None,
) -> Cost:
    """Of each block a forward of every input and C backwards; then the products of gradients.

    Raises:
        ArgumentError: N x C is above what fits into `memory`.
    """
    view = LinearHead.of(model)
    return kernel_cost("empirical NTK", view, images, view.classes, (names, memory, dtype))


def kernel_cost(
    what: str,
    view: LinearHead,
    images: int,
    each: int,
    options: tuple[Sequence[str] | None, int, torch.dtype | None],
) -> Cost:
    """Of a kernel of so many rows an input; `options` are names, memory, dtype."""
    names, memory, dtype = options
    item = (dtype or view.layer.weight.dtype).itemsize
    check_memory(images, each, item, memory)
    rows = images * each
    ours = view.backbone()
    parameters = sum(ours[name].numel() for name in moving_names(view, names))
    room = room_for_gradients(rows, item, memory)
    count = passes(rows, item, parameters, room)
    return Cost(
        what,
        forwards=images * (count + 1),
        weight_backwards=rows * count,
        flops=2.0 * rows**2 * parameters,
        bytes=min(memory, 4 * rows**2 * item + rows * parameters * item * 4 // 3),
    )


def head_gram(net: Network, x: Tensor, after_batch: Callable[[int], None] | None = None) -> Tensor:
    """<phi(x), phi(x')> + 1 of N inputs, (N, N); without the 1 where the head has no bias."""
    rows: list[Tensor] = []
    for part in x.split(64):
        with torch.no_grad():
            rows.append(net(part)[0])
        if after_batch:
            after_batch(len(part))
    features = torch.cat(rows)
    return features @ features.t() + (net.head.layer.bias is not None)


def room_for_gradients(rows: int, item: int, memory: int) -> int:
    """Bytes that four kernels of so many rows leave."""
    return memory - 4 * item * rows**2


def check_memory(images: int, classes: int, item: int, memory: int) -> None:
    """Raise where the kernel does not fit, with what would."""
    if not images:
        raise ArgumentError(describe("x", "at least one input", "none"))
    rows = images * classes
    if COPIES * item * rows**2 <= memory:
        return
    most = int((memory / (COPIES * item)) ** 0.5) // classes
    raise ArgumentError(
        describe(
            "x",
            f"N x C whose kernel takes at most 1/{COPIES} of `memory`, {memory:,} bytes",
            f"{images} inputs x {classes} classes = {rows:,}: {rows**2 * item:,} bytes",
            f"At most {most} inputs of {classes} classes fit: take fewer, or set `memory` to"
            f" {COPIES * rows**2 * item:,}; or use what builds no such kernel: one_step,"
            " top_eigenvalues, sum_of_logits_kernel.",
        )
    )
