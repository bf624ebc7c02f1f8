"""E-AT: one norm a batch, more often the one that is resisted less (Croce & Hein, "Adversarial
Robustness against Multiple and Single lp-Threat Models via Quick Fine-Tuning of Robust
Classifiers", ICML 2022, arXiv:2105.12508)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn

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
    not_drawn,
    searched,
)


@OBJECTIVES.register("eat")
@dataclass(frozen=True)
class EAT(Objective):
    """Mean cross-entropy on images attacked in one norm, drawn for every update.

    A norm's probability is proportional to 1 - its training robust accuracy in the whole stage so
    far, where an image counts as robust if it was right at every iterate of the attack. Until every
    norm was drawn once, and where no image was ever fooled, all are as likely. With attack
    multi_apgd and 10 steps a sample costs 12 forwards, 10 backwards to the input and 1 to the
    weights.

    Args:
        norms: what is drawn from. With three it is neither E-AT, whose authors take linf and l1
            alone, nor SAT.
    """

    norms: tuple[str, ...] = ("linf", "l1")
    draws: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_norms("norms", self.norms, fewest=2)

    @property
    def counters(self) -> int:
        """For each norm the images found robust, then for each the images attacked."""
        return 2 * len(self.norms)

    def check(self, attack: Attack | None) -> None:
        """As the base says: attack multi_apgd with all norms."""
        in_norms(attack, self.norms, "eat")

    def probabilities(self, counts: Tensor) -> Tensor:
        """Of each norm (m,), from the counts (2m,) so far, both float64 on the CPU."""
        robust, seen = counts.split(len(self.norms))
        wrong = 1 - robust / seen.clamp(min=1)
        if not bool((seen > 0).all()) or not bool(wrong.sum() > 0):
            wrong = torch.ones_like(wrong)
        return wrong / wrong.sum()

    def chosen(self, counts: Tensor, generator: Generator) -> Objective:
        """As the base says: the training in one of the norms."""
        point = torch.rand((), dtype=torch.float64, generator=generator)
        passed = int((self.probabilities(counts).cumsum(0) <= point).sum())
        return _Drawn(self.norms, min(passed, len(self.norms) - 1))  # the sum may round below 1

    def __call__(
        self,
        model: nn.Module,
        batch: Batch,
        attack: Attack | None,
        generator: Generator,
        engine: Engine,
    ) -> Terms:
        """Raises: what `chosen` gives is called in its place."""
        raise not_drawn("eat")


@dataclass(frozen=True)
class _Drawn(EAT):
    """E-AT's training in the norm at this place of `norms`."""

    place: int = 0

    def __call__(
        self,
        model: nn.Module,
        batch: Batch,
        attack: Attack | None,
        generator: Generator,
        engine: Engine,
    ) -> Terms:
        """As the base says."""
        counts = torch.zeros(self.counters, dtype=torch.float64, device=batch.x.device)
        if attack is None:
            terms = Adversarial()(model, batch, None, generator, engine)
            return terms._replace(counts=counts)
        norm = self.norms[self.place]
        search = in_norms(attack, [norm], "eat").search
        found = searched(search, model, batch, generator, engine).found[norm]
        logits = model(engine.to_memory_format(found.x_adv))
        counts[self.place] = found.robust.sum()
        counts[self.place + len(self.norms)].fill_(len(batch.y))
        return Terms(cross_entropy(logits, batch.y).mean(), logits.detach(), counts)
