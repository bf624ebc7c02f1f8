"""What can be said of a kernel that is too large to build."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn

from roli_fast.analysis.costs import Cost, count_of, say
from roli_fast.analysis.derivatives import Network, moving_names, network
from roli_fast.analysis.descent import descend, in_dtype
from roli_fast.analysis.gram import gram
from roli_fast.analysis.ntk import MEMORY, Kernel, Part, head_gram, kernel_cost, room_for_gradients
from roli_fast.analysis.view import LinearHead
from roli_fast.data import Batch
from roli_fast.errors import ArgumentError, check_choice, describe
from roli_fast.seeds import derived_generator


def top_eigenvalues(  # noqa: PLR0913 - one call, and each option is independent of the others
    model: nn.Module | LinearHead,
    batches: Iterable[Batch],
    count: int = 10,
    *,
    part: Part = "F",
    names: Sequence[str] | None = None,
    tol: float = 1e-4,
    head: str | None = None,
    dtype: torch.dtype | None = None,
    seed: int = 0,
) -> Tensor:
    """The largest eigenvalues of F, or of P + F, by Lanczos; the kernel is never built.

    Each of its products with a vector is one gradient and one Jacobian product of every input.

    Args:
        model: inputs (B, ...) -> logits (B, C), with a linear head.
        batches: the N inputs of the kernel; all are kept for the time of the call.
        count: how many, below N C.
        part: "F", or "NTK" for P + F. (P alone is a Gram matrix of features.)
        names: the tensors that train; see `one_step`.
        tol: relative accuracy of an eigenvalue.
        head: name of the head where it cannot be found.
        dtype: compute in this dtype, in a copy of the model; None is the model's own.
        seed: of the first vector.

    Returns:
        (count,), fp64, largest first.

    Raises:
        ArgumentError: `count` is not between 1 and N C - 1.
    """
    check_choice("part", part, ("F", "NTK"))
    view, kept = LinearHead.of(model, head), list(batches)
    images = count_of(kept) or 0
    size = images * view.classes
    if not 1 <= count < size:
        expected = f"a number of eigenvalues from 1 to {size - 1}, below N C"
        raise ArgumentError(describe("count", expected, count))
    say(top_eigenvalues_cost(images, count))
    start = torch.randn(size, generator=derived_generator("lanczos", seed), dtype=torch.float64)
    with network(in_dtype(view, dtype), names) as net:

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


def top_eigenvalues_cost(images: int, count: int = 10) -> Cost:
    """At least the products of one round of Lanczos, 20 or 2 `count` + 1; a few rounds may come."""
    products = max(20, 2 * count + 1)
    return Cost(
        "top eigenvalues, one round",
        forwards=2 * images * products,
        weight_backwards=images * products,
        jvps=images * products,
    )


def sum_of_logits_kernel(  # noqa: PLR0913 - one call, and each option is independent of the others
    model: nn.Module | LinearHead,
    x: Tensor,
    y: Tensor | None = None,
    *,
    names: Sequence[str] | None = None,
    memory: int = MEMORY,
    head: str | None = None,
    dtype: torch.dtype | None = None,
) -> Kernel:
    """The kernel of the sum of each input's logits: (N, N), one backward an input and block.

    Sums over classes of `empirical_ntk`'s, at 1 / C of its backwards and 1 / C^2 of its size. It
    shows how alike inputs are to the backbone. Residuals sum to zero over classes, so that it is no
    part of what a step of the cross-entropy does.

    Args: as `empirical_ntk`.

    Returns:
        A kernel of one class: `P_gram` is C (<phi(x), phi(x')> + 1).
    """
    view = LinearHead.of(model, head)
    say(kernel_cost("kernel of summed logits", view, len(x), 1, (names, memory, dtype)))
    with network(in_dtype(view, dtype), names) as net:
        ones = torch.ones_like(net.head.layer.weight[:, :1].detach().t())
        room = room_for_gradients(len(x), ones.element_size(), memory)
        found = gram(net, x, ones, memory=room)
        own = view.classes * head_gram(net, x)
    return Kernel(own.cpu(), found.cpu(), 1, None if y is None else y.cpu())


def sum_of_logits_kernel_cost(
    model: nn.Module | LinearHead,
    images: int,
    *,
    names: Sequence[str] | None = None,
    memory: int = MEMORY,
    dtype: torch.dtype | None = None,
) -> Cost:
    """Of each block a forward and a backward of every input.

    Raises:
        ArgumentError: N is above what fits into `memory`.
    """
    view = LinearHead.of(model)
    return kernel_cost("kernel of summed logits", view, images, 1, (names, memory, dtype))


def diagonal_of_F(
    model: nn.Module | LinearHead,
    x: Tensor,
    *,
    names: Sequence[str] | None = None,
    memory: int = MEMORY,
    head: str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """F's diagonal, the squared size of every logit's gradient in the backbone; its sum is the
    trace of F, the sum of all its eigenvalues.

    Args:
        model: inputs (B, ...) -> logits (B, C), with a linear head.
        x: inputs (N, ...), of which one is looked at at a time.
        names: the tensors that train; see `one_step`.
        memory: bytes for gradients; those of one logit are held in any case.
        head: name of the head where it cannot be found.
        dtype: compute in this dtype, in a copy of the model; None is the model's own.

    Returns:
        (N, C), on the CPU.
    """
    if not len(x):
        raise ArgumentError(describe("x", "at least one input", "none"))
    view = LinearHead.of(model, head)
    say(diagonal_of_F_cost(view, len(x), names=names, dtype=dtype))
    rows: list[Tensor] = []
    with network(in_dtype(view, dtype), names) as net:
        eye = torch.eye(view.classes).to(net.head.layer.weight.detach())
        each = sum(value.numel() for value in net.parameters.values()) * eye.element_size()
        for one in x.split(1):
            for run in eye.split(max(1, memory // max(each, 1))):
                found = net.rows(one, run, net.names).values()
                squares = [part.flatten(1).square().sum(1) for part in found]
                rows.append(torch.stack(squares).sum(0) if squares else run.new_zeros(len(run)))
    return torch.cat(rows).view(-1, view.classes).cpu()


def diagonal_of_F_cost(
    model: nn.Module | LinearHead,
    images: int,
    *,
    names: Sequence[str] | None = None,
    dtype: torch.dtype | None = None,
) -> Cost:
    """A forward and C backwards of every input; the gradients of its logits are held."""
    view = LinearHead.of(model)
    ours = view.backbone()
    each = sum(ours[name].numel() for name in moving_names(view, names))
    item = (dtype or view.layer.weight.dtype).itemsize
    return Cost(
        "diagonal of F",
        forwards=images,
        weight_backwards=images * view.classes,
        bytes=view.classes * each * item,
    )


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
