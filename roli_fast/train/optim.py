"""Optimisers, and which tensors decay."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
from torch import nn

from roli_fast.errors import ArgumentError, check_choice, describe
from roli_fast.peft.bias import TABLES
from roli_fast.threat import check_positive

Decay = Literal["matrices", "all"]
"""Which trainable tensors decay."""

_FUSED = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Optimizer:
    """What updates the trainable parameters.

    Args:
        name: "adamw", "sgd", or "lbfgs": full-batch logistic regression on the features of all
            training images, computed once without augmentation; for linear tuning without an
            attack. It has no rate and no epochs.
        lr: peak learning rate; it is used as given, never scaled by the batch size.
        weight_decay: decay of the tensors that `decay` names, used as given.
        momentum: of SGD.
        betas: of AdamW.
        eps: of AdamW, added to the root of the second moment.
        decay: "matrices", and kernels: 1-D parameters (biases, norms), class tokens, prompts and
            position tables never decay; or "all", every tensor that trains, as in E-AT's and RAMP's
            fine-tuning.
        strengths: of lbfgs: values of the penalty strength / 2 ||W||^2 on the mean loss that are
            tried, the bias left out; the highest validation accuracy chooses, of equals the lowest
            validation loss. Empty tries `weight_decay` alone. scikit-learn's C is
            1 / (strength N).
        iterations: of lbfgs, the most for a strength.
    """

    name: Literal["adamw", "sgd", "lbfgs"] = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.01
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    decay: Decay = "matrices"
    strengths: tuple[float, ...] = ()
    iterations: int = 500

    def __post_init__(self) -> None:
        check_positive("lr", self.lr)
        check_positive("optimizer.eps", self.eps)
        check_choice("optimizer.name", self.name, ("adamw", "sgd", "lbfgs"))
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ArgumentError(describe("optimizer.betas", "two numbers in [0, 1)", self.betas))
        if not 0 <= self.momentum < 1:
            raise ArgumentError(describe("optimizer.momentum", "a number in [0, 1)", self.momentum))
        if not self.weight_decay >= 0:
            raise ArgumentError(describe("weight_decay", "a number >= 0", self.weight_decay))
        check_choice("optimizer.decay", self.decay, get_args(Decay))
        self._check_lbfgs()

    def _check_lbfgs(self) -> None:
        if self.strengths and self.name != "lbfgs":
            fix = "Others decay by weight_decay: set optimizer.strengths to [] beside them."
            raise ArgumentError(
                describe("optimizer.strengths", "none beside lbfgs", self.strengths, fix)
            )
        if self.strengths and self.weight_decay not in (0.0, Optimizer.weight_decay):
            fix = f"lbfgs tries its strengths: set optimizer.strengths to [{self.weight_decay}]."
            expected = "0 beside strengths"
            raise ArgumentError(describe("weight_decay", expected, self.weight_decay, fix))
        for strength in self.strengths:
            check_positive("optimizer.strengths", strength)
        if len(set(self.strengths)) < len(self.strengths):
            raise ArgumentError(
                describe("optimizer.strengths", "different numbers", self.strengths)
            )
        if self.name == "lbfgs" and not self.strengths and not self.weight_decay:
            fix = "Separable features have no best head without a penalty."
            raise ArgumentError(describe("weight_decay", "a number > 0 with lbfgs", 0, fix))
        if self.iterations < 1:
            raise ArgumentError(
                describe("optimizer.iterations", "an integer >= 1", self.iterations)
            )

    def build(self, model: nn.Module, names: Iterable[str]) -> torch.optim.Optimizer:
        """The torch optimiser over the named parameters of `model`.

        Raises:
            ArgumentError: lbfgs, which is no optimiser of batches.
        """
        if self.name == "lbfgs":
            fix = "A stage with it runs through train.linear_probe."
            raise ArgumentError(describe("optimizer.name", "adamw or sgd", "'lbfgs'", fix))
        groups = parameter_groups(model, names, weight_decay=self.weight_decay, decay=self.decay)
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
    model: nn.Module, names: Iterable[str], *, weight_decay: float, decay: Decay = "matrices"
) -> list[dict[str, Any]]:
    """Two groups, with and without decay; which parameter is where follows from shape and role.

    Without decay, unless all have it: tensors with fewer than two dimensions, relative position
    tables, and what a module itself lists in `no_weight_decay` (class tokens, position tables,
    prompts).
    """
    parameters = dict(model.named_parameters())
    chosen, decayed = list(names), list(names)
    if decay == "matrices":
        exempt = _exempt(model)
        decayed = [n for n in chosen if parameters[n].ndim >= 2 and n not in exempt]
    rest = [n for n in chosen if n not in set(decayed)]
    groups = [(decayed, weight_decay), (rest, 0.0)]
    return [
        {"params": [parameters[n] for n in part], "weight_decay": own}
        for part, own in groups
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
