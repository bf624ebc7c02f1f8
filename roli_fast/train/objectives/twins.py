"""TWINS: batch normalisation with the pretraining statistics beside the usual one (Liu et al., CVPR
2023, arXiv:2303.11135)."""

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch
from torch import Generator, nn
from torch.nn.modules.batchnorm import _BatchNorm

from roli_fast.attacks import Attack
from roli_fast.errors import ArgumentError, check_choice, describe
from roli_fast.losses import cross_entropy, kl
from roli_fast.models.classifier import name_of
from roli_fast.threat import check_positive
from roli_fast.train.objectives.base import (
    BESIDE,
    OBJECTIVES,
    Objective,
    Step,
    Terms,
    attacked,
    logits_of,
    needs_attack,
)

KLMean = Literal["half", "batch"]


@OBJECTIVES.register("twins")
@dataclass(frozen=True)
class TWINS(Objective):
    """frozen_weight * L(frozen) + L(adaptive): two networks that share all but their BatchNorms.

    The adaptive one is the model itself, which the attack sees in eval mode and which is all that
    leaves the stage. The frozen one normalises by the statistics of the stage's first weights, with
    a scale and shift of its own, trained like the other's. The first half of a batch goes through
    the frozen network, the rest through the adaptive one, two images at least. L is the mean
    cross-entropy on the attacked half; with `beta` above 0 it is TRADES' loss, on the clean half
    plus beta times the KL. Several parts of an update, or processes, halve each their own.

    Args:
        frozen_weight: lambda. The authors' code says 0.3 by default, 0.4 for Caltech-256 and 1 for
            CIFAR-10.
        beta: of TRADES' form, 6 there; 0 is TWINS-AT.
        kl_mean: the KL is averaged over "half" of the batch, as the cross-entropy; or its sum over
            the half divided by the whole "batch", as in the authors' code: there a beta acts as
            half of it.
    """

    frozen_weight: float = 0.3
    beta: float = 0.0
    kl_mean: KLMean = "half"

    def __post_init__(self) -> None:
        check_positive("frozen_weight", self.frozen_weight, zero=True)
        check_positive("beta", self.beta, zero=True)
        check_choice("kl_mean", self.kl_mean, get_args(KLMean))

    def beside(self, model: nn.Module, generator: Generator) -> nn.Module:
        norms = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, _BatchNorm) and module.running_mean is not None
        }
        if not norms:
            got = f"twins for {name_of(model)}, which has none"
            fix = "Take objective adversarial, trades or autolora."
            raise ArgumentError(describe("objective", "a network with BatchNorm", got, fix))
        return Frozen(norms)

    def check(self, attack: Attack | None) -> None:
        needs_attack(attack, "twins")

    def images(self, attack: Attack) -> int:
        return 2 if self.beta else 1

    def on_attacked(self, step: Step, attack: Attack) -> Terms:
        """The logits are those on the attacked images, each through its own network."""
        frozen = cast(Frozen, step.model.get_submodule(BESIDE))
        x_adv, (x, y, _ids) = attacked(step), step.batch
        # BatchNorm of the adaptive network cannot take a half of one image
        first = max(0, min(len(y) // 2, len(y) - 2))
        loss, logits = x.new_zeros(()), []
        for weight, half in ((self.frozen_weight, slice(first)), (1.0, slice(first, None))):
            if not (count := len(y[half])):
                continue
            images = [x_adv[half], x[half]] if self.beta else [x_adv[half]]
            through = frozen.inside(step.model) if half.start is None else contextlib.nullcontext()
            with through:
                found = logits_of(step.model, images, step.engine)
            own = cross_entropy(found[-1], y[half]).mean()
            if self.beta:
                over = count if self.kl_mean == "half" else len(y)
                own = own + self.beta * kl(*found).sum() / over
            loss = loss + weight * own
            logits.append(found[0].detach())
        return Terms(loss, torch.cat(logits))


class Frozen(nn.Module):
    """The second BatchNorm of every one in a network: copies, in eval mode when they are used.

    Args:
        norms: name in the network -> the one to copy, with its statistics.
    """

    def __init__(self, norms: dict[str, _BatchNorm]) -> None:
        super().__init__()
        self.names = tuple(norms)
        self.norms = nn.ModuleList(map(copy.deepcopy, norms.values())).eval()

    @contextlib.contextmanager
    def inside(self, model: nn.Module) -> Iterator[None]:
        """Within, `model` has the copies in the place of its own."""
        own = [model.get_submodule(name) for name in self.names]
        try:
            for name, norm in zip(self.names, self.norms, strict=True):
                model.set_submodule(name, norm.eval())
            yield
        finally:
            for name, norm in zip(self.names, own, strict=True):
                model.set_submodule(name, norm)
