"""Optimisers, which tensors decay, and the learning-rate schedule."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import nn

from roli_fast.errors import ArgumentError, describe
from roli_fast.peft.bias import TABLES
from roli_fast.threat import check_positive

_FUSED = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Optimizer:
    """What updates the trainable parameters.

    Args:
        name: "adamw" or "sgd".
        lr: peak learning rate; it is used as given, never scaled by the batch size.
        weight_decay: decay of matrices and kernels, used as given; 1-D parameters (biases, norms),
            class tokens, prompts and position tables never decay.
        momentum: of SGD.
        betas: of AdamW.
        eps: of AdamW, added to the root of the second moment.
    """

    name: Literal["adamw", "sgd"] = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.01
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        check_positive("lr", self.lr)
        check_positive("optimizer.eps", self.eps)
        if self.name not in ("adamw", "sgd"):
            raise ArgumentError(describe("optimizer.name", "'adamw' or 'sgd'", repr(self.name)))
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ArgumentError(describe("optimizer.betas", "two numbers in [0, 1)", self.betas))
        if not 0 <= self.momentum < 1:
            raise ArgumentError(describe("optimizer.momentum", "a number in [0, 1)", self.momentum))
        if not self.weight_decay >= 0:
            raise ArgumentError(describe("weight_decay", "a number >= 0", self.weight_decay))

    def build(self, model: nn.Module, names: Iterable[str]) -> torch.optim.Optimizer:
        """The torch optimiser over the named parameters of `model`."""
        groups = parameter_groups(model, names, weight_decay=self.weight_decay)
        if self.name == "sgd":
            return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, fused=fused(groups))
        return self.adamw(groups)

    def adamw(self, groups: list[dict[str, Any]]) -> torch.optim.AdamW:
        """torch's AdamW over these groups, with this rate, betas and eps."""
        return torch.optim.AdamW(
            groups, lr=self.lr, betas=self.betas, eps=self.eps, fused=fused(groups)
        )


def fused(groups: list[dict[str, Any]]) -> bool:
    """Whether torch can update all of these parameters by its fused kernels.

    Those are one pass over a parameter, its gradient and its state. Counts of steps then lie beside
    the parameters, so that a GPU is never asked for them.
    """
    return all(
        parameter.device.type in ("cpu", "cuda") and parameter.dtype in _FUSED
        for group in groups
        for parameter in group["params"]
    )


def parameter_groups(
    model: nn.Module, names: Iterable[str], *, weight_decay: float
) -> list[dict[str, Any]]:
    """Two groups, with and without decay; which parameter is where follows from shape and role.

    Without decay: tensors with fewer than two dimensions, relative position tables, and what a
    module itself lists in `no_weight_decay` (class tokens, position tables, prompts).
    """
    parameters = dict(model.named_parameters())
    exempt = _exempt(model)
    chosen = list(names)
    decayed = [n for n in chosen if parameters[n].ndim >= 2 and n not in exempt]
    rest = [n for n in chosen if n not in set(decayed)]
    groups = [(decayed, weight_decay), (rest, 0.0)]
    return [
        {"params": [parameters[n] for n in part], "weight_decay": decay}
        for part, decay in groups
        if part
    ]


def _exempt(model: nn.Module) -> set[str]:
    names = {n for n, _ in model.named_parameters() if n.rpartition(".")[2] in TABLES}
    for prefix, module in model.named_modules():
        listed = getattr(module, "no_weight_decay", None)
        if callable(listed):
            found = cast(Iterable[str], listed())
            names |= {f"{prefix}.{name}" if prefix else name for name in found}
    return names


def lr_factor(step: int, *, total: int, warmup: int) -> float:
    """Share of the peak rate at `step` of `total`: linear warm-up, then half a cosine to zero.

    The first step is at 1 / warmup, never at zero.
    """
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
