"""AVG: the mean of the losses in all norms (Tramer & Boneh, "Adversarial Training and Robustness
for Multiple Perturbations", NeurIPS 2019, arXiv:1904.13000, the "avg" strategy)."""

from dataclasses import dataclass

import torch
from torch import Generator, nn

from roli_fast.attacks import Attack
from roli_fast.data import Batch
from roli_fast.engine import Engine
from roli_fast.losses import cross_entropy
from roli_fast.train.objectives.adversarial import Adversarial
from roli_fast.train.objectives.base import (
    OBJECTIVES,
    Objective,
    Terms,
    check_norms,
    in_norms,
    logits_of,
    searched,
)


@OBJECTIVES.register("avg")
@dataclass(frozen=True)
class AVG(Objective):
    """Mean cross-entropy over every image attacked in every norm, all with the same weight. The
    attack is multi_apgd; one backward to the weights a norm.

    Args:
        norms: which; null takes all of the attack's.
    """

    norms: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.norms is not None:
            check_norms("norms", self.norms)

    def check(self, attack: Attack | None) -> None:
        """As the base says: attack multi_apgd with all norms."""
        in_norms(attack, self.norms, "avg")

    def __call__(
        self,
        model: nn.Module,
        batch: Batch,
        attack: Attack | None,
        generator: Generator,
        engine: Engine,
    ) -> Terms:
        """As the base says; its logits are, image by image, those of largest loss."""
        if attack is None:
            return Adversarial()(model, batch, None, generator, engine)
        search = in_norms(attack, self.norms, "avg").search
        found = searched(search, model, batch, generator, engine).found.values()
        logits = logits_of(model, [own.x_adv for own in found], engine)
        losses = torch.stack([cross_entropy(own, batch.y) for own in logits])  # (m, B)
        worst = losses.argmax(0)
        rows = torch.arange(len(batch.y), device=worst.device)
        return Terms(losses.mean(), torch.stack(logits).detach()[worst, rows])
