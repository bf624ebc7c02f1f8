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
from roli_fast.analysis.gram import Piece, gram
from roli_fast.analysis.ntk import MEMORY, check_memory
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
    found = method.find(model)
    say(lora_kernel_cost(model, method, len(x), draws=draws, memory=memory))
    view = LinearHead.of(model)
    factor = (method.alpha / method.rank) ** 2 * method.rank
    layers = {name: _linear(model, name) for name in found}
    scales = {n: factor * start_variance(layer.in_features) for n, layer in layers.items()}
    expected = torch.zeros(())
    with network(in_dtype(view, dtype), [f"{name}.weight" for name in found]) as net:
        eye = torch.eye(view.classes).to(net.head.layer.weight.detach())
        for name, rows in found.items():
            layer = layers[name]
            width = layer.in_features
            ranges = rows or ((0, layer.out_features),)
            pieces = [Piece(f"{name}.weight", i * width, j * width) for i, j in ranges]
            own = gram(net, x, eye, memory=memory // 2, pieces=pieces)
            expected = expected.to(own) + scales[name] * own
    mean, errors = torch.zeros_like(expected), []
    for draw in range(draws):
        adapted = copy.deepcopy(model)
        names = apply(adapted, method, seed=derive_seed("lora_kernel", seed, draw))
        with network(in_dtype(LinearHead.of(adapted), dtype), names) as net:
            own = gram(net, x, eye, memory=memory // 2)
        mean += own / draws
        errors.append(_distance(own, expected))
    return LoraKernel(expected.cpu(), mean.cpu(), tuple(errors), scales)


def start_variance(inputs: int) -> float:
    """Of an entry of A as `LoraLinear` draws it: uniform in +-1 / sqrt(inputs)."""
    return 1 / (3 * inputs)


def lora_kernel_cost(
    model: Classifier, method: LoRA, images: int, *, draws: int = 8, memory: int = MEMORY
) -> Cost:
    """Of each adapted matrix, and of each draw, a forward of every input and C backwards.

    Raises:
        ArgumentError: as `lora_kernel`.
    """
    view = LinearHead.of(model)
    item = view.layer.weight.dtype.itemsize
    check_memory(images, view.classes, item, memory)
    rows, passes = images * view.classes, len(method.find(model)) + draws
    return Cost(
        "LoRA kernel",
        forwards=images * passes,
        weight_backwards=rows * passes,
        bytes=memory // 2 + 3 * item * rows**2,
    )


def _linear(model: nn.Module, name: str) -> nn.Linear:
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Linear), "LoRA.find finds nothing else"
    return layer


def _distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())
