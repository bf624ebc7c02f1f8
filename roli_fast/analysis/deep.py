"""The analysis of a stage's start that takes minutes: the first update and the tangent kernel.
Model, images and attack in, trees for a JSON file out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from roli_fast.analysis.descent import attacked
from roli_fast.analysis.light import Images, number
from roli_fast.analysis.one_step import (
    OneStep,
    Optimize,
    actual_change,
    first_update,
    one_step,
)
from roli_fast.attacks import Attack
from roli_fast.data import Batch


@dataclass(frozen=True, eq=False)
class Start:
    """A stage at its start, and what it is looked at with.

    Args:
        model: as the stage began, its tuning applied.
        names: the tensors that the stage trains.
        train: training images.
        validation: held-out images, on which changes are measured.
        attack: under the threat.
        lr: the stage's rate.
        optimizer: its name, "adamw" say.
        optimize: (model, names) -> the stage's optimiser.
        seed: of the attack's draws.
    """

    model: nn.Module
    names: Sequence[str]
    train: Images
    validation: Images
    attack: Attack
    lr: float
    optimizer: str
    optimize: Optimize
    seed: int = 0

    def kinds(self) -> dict[str, Attack | None]:
        """Clean training looked at on clean images, adversarial training on attacked ones."""
        return {"clean": None, "adversarial": self.attack}

    def seen(self, attack: Attack | None) -> list[Batch]:
        """The validation images, attacked at this model where there is an attack."""
        return list(attacked(self.model, self.validation(), attack, seed=self.seed))


def one_step_tree(start: Start) -> dict[str, Any]:
    """The first update to first order, clean and adversarial.

    Of each kind: "ft_ratio"; "lr", the stage's rate on the mean loss over the training images;
    "predicted" and "actual", mean |change of the features| under that step of SGD, to first order
    and really; "predicted_logits" likewise; "relative_error", mean |predicted - actual| over mean
    |actual|; "residual"; how many images; and under "first_update" the same of the first step that
    the stage's own optimiser makes.
    """
    return {kind: _one_step(start, attack) for kind, attack in start.kinds().items()}


def _one_step(start: Start, attack: Attack | None) -> dict[str, Any]:
    train, seen = list(start.train()), start.seen(attack)
    count = sum(len(batch.y) for batch in train)
    options: dict[str, Any] = {"names": start.names, "seed": start.seed}
    step = one_step(start.model, train, seen, lr=start.lr / count, attack=attack, **options)
    tangent = first_update(start.model, train, start.optimize, attack=attack, **options)
    own = one_step(start.model, (), seen, tangent=tangent, names=start.names)
    return {
        "ft_ratio": number(step.ft_ratio),
        "lr": start.lr,
        **_compared(start, step, seen),
        "residual": number(step.residual),
        "train_images": count,
        "images": len(step.features),
        "first_update": {"optimizer": start.optimizer, **_compared(start, own, seen)},
        "notes": list(dict.fromkeys((*step.notes, *own.notes))),
    }


def _compared(start: Start, step: OneStep, seen: list[Batch]) -> dict[str, float | None]:
    """What was predicted beside what happens, which is measured in fp64: at small rates it would
    drown in fp32's rounding."""
    change = actual_change(start.model, step.tangent, seen, dtype=torch.float64)
    size = change.features.norm(dim=1).mean()
    off = (step.features.double() - change.features).norm(dim=1).mean()
    return {
        "predicted": _mean_size(step.features),
        "actual": number(size.item()),
        "predicted_logits": _mean_size(step.logits),
        "actual_logits": _mean_size(change.logits),
        "relative_error": number((off / size).item()),
    }


def _mean_size(rows: Tensor) -> float | None:
    return number(rows.double().norm(dim=1).mean().item())
