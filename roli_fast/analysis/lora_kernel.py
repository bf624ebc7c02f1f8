"""LoRA's kernel beside full fine-tuning's.

At B = 0 only B moves the function, by scale * A x, so that for any network, averaged over A,

    E_A[F_LoRA] = sum over adapted matrices of (alpha / r)^2 sigma_A^2 r F_FT of that matrix alone,

sigma_A^2 the variance of A's entries. (Tomihari & Sato 2024, arXiv:2405.16747, theorem 4.2, bound
the distance of one draw for a linear network.)
"""

import copy
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from roli_fast.analysis.derivatives import network
from roli_fast.analysis.ntk import MEMORY, Piece, check_memory, gram
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


def lora_kernel(
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
    view, adapted = LinearHead.of(model), _adapted(model, method)
    check_memory(len(x), view.classes, (dtype or view.layer.weight.dtype).itemsize, memory)
    expected = torch.zeros(())
    with network(view, [layer.name for layer in adapted], dtype) as net:
        eye = torch.eye(view.classes).to(net.head.layer.weight.detach())
        for layer in adapted:
            own = gram(net, x, eye, memory=memory, pieces=layer.pieces)
            expected = expected.to(own) + layer.scale * own
    mean, errors = torch.zeros_like(expected), []
    for draw in range(draws):
        drawn = copy.deepcopy(model)
        names = apply(drawn, method, seed=derive_seed("lora_kernel", seed, draw))
        with network(LinearHead.of(drawn), names, dtype) as net:
            own = gram(net, x, eye, memory=memory)
        mean += own / draws
        errors.append(_distance(own, expected))
    scales = {layer.name.removesuffix(".weight"): layer.scale for layer in adapted}
    return LoraKernel(expected.cpu(), mean.cpu(), tuple(errors), scales)


def start_variance(inputs: int) -> float:
    """Of an entry of A as `LoraLinear` draws it: uniform in +-1 / sqrt(inputs)."""
    return 1 / (3 * inputs)


class _Layer(NamedTuple):
    """A matrix that LoRA takes: its parameter, the entries that LoRA moves, their factor."""

    name: str
    pieces: list[Piece]
    scale: float


def _adapted(model: Classifier, method: LoRA) -> list[_Layer]:
    """What LoRA takes of this model; every check is made."""
    found: list[_Layer] = []
    factor = (method.alpha / method.rank) ** 2 * method.rank
    for name, rows in method.find(model).items():
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear), "LoRA.find finds nothing else"
        weight, width = f"{name}.weight", layer.in_features
        ranges = rows or ((0, layer.out_features),)
        pieces = [Piece(weight, start * width, stop * width) for start, stop in ranges]
        found.append(_Layer(weight, pieces, factor * start_variance(width)))
    return found


def _distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())
