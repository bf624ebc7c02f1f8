"""SAT: one norm a batch, all as likely (Madaan et al., "Learning to Generate Noise for Multi-Attack
Robustness", ICML 2021, arXiv:2006.12135, stochastic adversarial training)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn

from roli_fast.attacks import Attack
from roli_fast.data import Batch
from roli_fast.engine import Engine
from roli_fast.train.objectives.adversarial import Adversarial
from roli_fast.train.objectives.base import (
    OBJECTIVES,
    Objective,
    Terms,
    check_norms,
    in_norms,
    not_drawn,
)


@OBJECTIVES.register("sat")
@dataclass(frozen=True)
class SAT(Objective):
    """Mean cross-entropy on images attacked in one norm, drawn for every update. It costs as much
    as adversarial training in one norm. The attack is multi_apgd.

    Args:
        norms: what is drawn from; null takes all of the attack's.
    """

    norms: tuple[str, ...] | None = None
    draws: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.norms is not None:
            check_norms("norms", self.norms)

    def check(self, attack: Attack | None) -> None:
        """As the base says: attack multi_apgd with all norms."""
        in_norms(attack, self.norms, "sat")

    def chosen(self, counts: Tensor, generator: Generator) -> Objective:
        """As the base says: the training in one of the norms, which the attack may have to name."""
        point = torch.rand((), dtype=torch.float64, generator=generator)
        return _Drawn(self.norms, float(point))

    def __call__(
        self,
        model: nn.Module,
        batch: Batch,
        attack: Attack | None,
        generator: Generator,
        engine: Engine,
    ) -> Terms:
        """Raises: what `chosen` gives is called in its place."""
        raise not_drawn("sat")


@dataclass(frozen=True)
class _Drawn(SAT):
    """SAT's training in one norm: the one at `point`, in [0, 1), of the way through them."""

    point: float = 0.0

    def __call__(
        self,
        model: nn.Module,
        batch: Batch,
        attack: Attack | None,
        generator: Generator,
        engine: Engine,
    ) -> Terms:
        """As the base says."""
        if attack is not None:
            norms = in_norms(attack, self.norms, "sat").norms or ()
            attack = in_norms(attack, [norms[int(self.point * len(norms))]], "sat")
        return Adversarial()(model, batch, attack, generator, engine)
