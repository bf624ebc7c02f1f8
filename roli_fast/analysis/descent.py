"""Minus the gradient of a summed loss, batch by batch, and the attacked batches it is taken on."""

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from roli_fast.analysis import gathering
from roli_fast.analysis.derivatives import Network
from roli_fast.analysis.view import LinearHead
from roli_fast.attacks import Attack
from roli_fast.data import Batch
from roli_fast.errors import ArgumentError, describe

Weigh = Callable[[Batch, Tensor], Tensor]
"""(batch, logits (B, C)) -> delta (B, C), what each logit is weighted with."""


@dataclass(frozen=True)
class Descent:
    """Where the summed loss falls fastest.

    Args:
        tangent: minus the gradient, by parameter name: sum_i J(x_i)^T V^T delta_i of the backbone,
            sum_i delta_i phi(x_i)^T and sum_i delta_i of the head.
        residual: mean |delta_i|.
        images: how many were summed.
    """

    tangent: dict[str, Tensor] = field(repr=False)
    residual: float
    images: int


def descend(net: Network, batches: Iterable[Batch], weigh: Weigh) -> Descent:
    """One forward and one backward for each image; memory for one sum of gradients.

    Args:
        net: the network.
        batches: the images, on any device.
        weigh: gives delta.

    Raises:
        ArgumentError: no images.
    """
    total = {name: torch.zeros_like(value) for name, value in net.parameters.items()}
    layer = net.head.layer
    weight = torch.zeros_like(layer.weight, requires_grad=False)
    bias = weight.new_zeros(layer.out_features)
    size, images = 0.0, 0
    for batch in batches:
        own = batch._replace(y=batch.y.to(weight.device))
        pulled = net.pull(batch.x, partial(weigh, own))
        for name, value in pulled.gradient.items():
            total[name] += value
        weight += pulled.weights.t() @ pulled.features
        bias += pulled.weights.sum(0)
        size += float(pulled.weights.double().norm(dim=1).sum())
        images += len(own.y)
    if not images:
        raise ArgumentError(describe("train", "at least one image", "none"))
    total |= net.of_head(weight, bias)
    return Descent(total, size / images, images)


def attacked(
    model: nn.Module, batches: Iterable[Batch], attack: Attack | None, *, seed: int = 0
) -> Iterator[Batch]:
    """The batches with attack(x_i) in place of x_i; the draws are those of `evaluate`."""
    for batch in batches:
        if attack is None:
            yield batch
        else:
            yield batch._replace(x=gathering.attacked(model, batch, attack, seed=seed).x_adv)


def in_dtype(view: LinearHead, dtype: torch.dtype | None) -> LinearHead:
    """The view itself, or one of a copy in another dtype."""
    if dtype in (None, view.layer.weight.dtype):
        return view
    return LinearHead.of(copy.deepcopy(view.model).to(dtype), view.name)
