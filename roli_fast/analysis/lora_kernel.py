"""LoRA's kernel beside full fine-tuning's.

At B = 0 only B moves the function, by scale * A x, so that for any network, averaged over A,

    E_A[F_LoRA] = sum over adapted matrices of (alpha / r)^2 sigma_A^2 r F_FT of that matrix alone,

sigma_A^2 the variance of A's entries. (Tomihari & Sato 2024, arXiv:2405.16747, theorem 4.2, bound
the distance of one draw for a linear network.)
"""

import copy
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from roli_fast.analysis.costs import Cost, say
from roli_fast.analysis.derivatives import network
from roli_fast.analysis.descent import in_dtype
from roli_fast.analysis.gram import Piece, gram, passes
from roli_fast.analysis.ntk import MEMORY, check_memory, room_for_gradients
from roli_fast.analysis.view import LinearHead
from roli_fast.models import Classifier
from roli_fast.peft import LoRA, apply
from roli_fast.seeds import derive_seed


@dataclass(frozen=True)
class LoraKernel:
    """Kernels (N C, N C) of the backbone's part, without the head's.

    Args:
        expected: the sum above.
        mean: F_LoRA, its mean over the draws.
        errors: |F_LoRA - expected| / |expected| of each draw, Frobenius.
        scales: adapted layer -> (alpha / r)^2 sigma_A^2 r.
    """

    expected: Tensor = field(repr=False)
    mean: Tensor = field(repr=False)
    errors: tuple[float, ...]
    scales: dict[str, float]

    @property
    def error(self) -> float:
        """|mean - expected| / |expected|; it falls as 1 / sqrt(draws)."""
        return _distance(self.mean, self.expected)


def lora_kernel(  # noqa: PLR0913 - one call, and each option is independent of the others
    model: Classifier,
    method: LoRA,
    x: Tensor,
    *,
    draws: int = 8,
    seed: int = 0,
    memory: int = MEMORY,
    dtype: torch.dtype | None = None,
) -> LoraKernel:
    """The kernel of LoRA as it starts, over draws of A, and what it should be on average.

    Args:
        model: a classifier without LoRA; it is copied.
        method: rank, alpha and which layers.
        x: N inputs.
        draws: how many times A is drawn, as `peft.apply` draws it.
        seed: of the draws.
        memory: bytes it may take; see `empirical_ntk`.
        dtype: compute in this dtype; None is the model's own.

    Raises:
        ArgumentError: LoRA cannot be applied, or N x C is above what fits into `memory`.
    """
    say(lora_kernel_cost(model, method, len(x), draws=draws, memory=memory, dtype=dtype))
    view, adapted = LinearHead.of(model), _adapted(model, method)
    expected = torch.zeros(())
    with network(in_dtype(view, dtype), [layer.name for layer in adapted]) as net:
        eye = torch.eye(view.classes).to(net.head.layer.weight.detach())
        room = room_for_gradients(len(x) * view.classes, eye.element_size(), memory)
        for layer in adapted:
            own = gram(net, x, eye, memory=room, pieces=layer.pieces())
            expected = expected.to(own) + layer.scale * own
    mean, errors = torch.zeros_like(expected), []
    for draw in range(draws):
        drawn = copy.deepcopy(model)
        names = apply(drawn, method, seed=derive_seed("lora_kernel", seed, draw))
        with network(in_dtype(LinearHead.of(drawn), dtype), names) as net:
            own = gram(net, x, eye, memory=room)
        mean += own / draws
        errors.append(_distance(own, expected))
    scales = {layer.name.removesuffix(".weight"): layer.scale for layer in adapted}
    return LoraKernel(expected.cpu(), mean.cpu(), tuple(errors), scales)


def start_variance(inputs: int) -> float:
    """Of an entry of A as `LoraLinear` draws it: uniform in +-1 / sqrt(inputs)."""
    return 1 / (3 * inputs)


def lora_kernel_cost(  # noqa: PLR0913 - each is independent of the others
    model: Classifier,
    method: LoRA,
    images: int,
    *,
    draws: int = 8,
    memory: int = MEMORY,
    dtype: torch.dtype | None = None,
) -> Cost:
    """Of each adapted matrix, and of each draw, a forward of every input and C backwards; more
    where their gradients do not fit into `memory` at once.

    Raises:
        ArgumentError: as `lora_kernel`.
    """
    view, adapted = LinearHead.of(model), _adapted(model, method)
    item = (dtype or view.layer.weight.dtype).itemsize
    check_memory(images, view.classes, item, memory)
    rows = images * view.classes
    room = room_for_gradients(rows, item, memory)
    every = sum(passes(rows, item, layer.full, room) for layer in adapted)
    low = sum(layer.low for layer in adapted)
    every += draws * passes(rows, item, low, room)
    return Cost(
        "LoRA kernel",
        forwards=images * every,
        weight_backwards=rows * every,
        bytes=memory,
    )


@dataclass(frozen=True)
class _Layer:
    """A matrix that LoRA takes: its parameter, its row length, ranges of its rows, the rank."""

    name: str
    width: int
    ranges: tuple[tuple[int, int], ...]
    rank: int
    scale: float

    def pieces(self) -> list[Piece]:
        """The entries that LoRA moves."""
        return [Piece(self.name, i * self.width, j * self.width) for i, j in self.ranges]

    @property
    def full(self) -> int:
        """How many these are."""
        return sum(piece.width for piece in self.pieces())

    @property
    def low(self) -> int:
        """How many A and B have."""
        rows = sum(stop - start for start, stop in self.ranges)
        return self.rank * (len(self.ranges) * self.width + rows)


def _adapted(model: Classifier, method: LoRA) -> list[_Layer]:
    """What LoRA takes of this model; every check is made."""
    found: list[_Layer] = []
    factor = (method.alpha / method.rank) ** 2 * method.rank
    for name, rows in method.find(model).items():
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear), "LoRA.find finds nothing else"
        ranges, width = rows or ((0, layer.out_features),), layer.in_features
        scale = factor * start_variance(width)
        found.append(_Layer(f"{name}.weight", width, ranges, method.rank, scale))
    return found


def _distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())
