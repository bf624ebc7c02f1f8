"""Objectives over the norms of multi_apgd: E-AT and SAT, which draw one an update, and AVG."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from roli_fast.attacks import Attack
from roli_fast.losses import cross_entropy
from roli_fast.train.objectives.base import (
    OBJECTIVES,
    Adversarial,
    Objective,
    Step,
    Terms,
    check_norms,
    in_norms,
    logits_of,
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

    Croce & Hein, "Adversarial Robustness against Multiple and Single lp-Threat Models via Quick
    Fine-Tuning of Robust Classifiers", ICML 2022, arXiv:2105.12508.

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
        in_norms(attack, self.norms, "eat")

    def probabilities(self, counts: Tensor) -> Tensor:
        """Of each norm (m,), from the counts (2m,) so far, both float64 on the CPU."""
        robust, seen = counts.split(len(self.norms))
        wrong = 1 - robust / seen.clamp(min=1)
        if not bool((seen > 0).all()) or not bool(wrong.sum() > 0):
            wrong = torch.ones_like(wrong)
        return wrong / wrong.sum()

    def chosen(self, counts: Tensor, generator: Generator) -> Objective:
        point = torch.rand((), dtype=torch.float64, generator=generator)
        passed = int((self.probabilities(counts).cumsum(0) <= point).sum())
        return _DrawnEAT(self.norms, min(passed, len(self.norms) - 1))  # the sum may round below 1


@dataclass(frozen=True)
class _DrawnEAT(EAT):
    """E-AT's training in the norm at this index of `norms`."""

    index: int = 0

    def on_attacked(self, step: Step, attack: Attack) -> Terms:
        y = step.batch.y
        counts = torch.zeros(self.counters, dtype=torch.float64, device=y.device)
        norm = self.norms[self.index]
        search = in_norms(attack, [norm], "eat").search
        found = searched(search, step).found[norm]
        logits = step.model(step.engine.to_memory_format(found.x_adv))
        counts[self.index] = found.robust.sum()
        counts[self.index + len(self.norms)].fill_(len(y))
        return Terms(cross_entropy(logits, y).mean(), logits.detach(), counts)


@OBJECTIVES.register("sat")
@dataclass(frozen=True)
class SAT(Objective):
    """Mean cross-entropy on images attacked in one norm, drawn for every update, all as likely. It
    costs as much as adversarial training in one norm. The attack is multi_apgd.

    Madaan et al., "Learning to Generate Noise for Multi-Attack Robustness", ICML 2021,
    arXiv:2006.12135, stochastic adversarial training.

    Args:
        norms: what is drawn from; null takes all of the attack's.
    """

    norms: tuple[str, ...] | None = None
    draws: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.norms is not None:
            check_norms("norms", self.norms)

    def check(self, attack: Attack | None) -> None:
        in_norms(attack, self.norms, "sat")

    def chosen(self, counts: Tensor, generator: Generator) -> Objective:
        """The training in one of the norms, which the attack may have to name."""
        point = torch.rand((), dtype=torch.float64, generator=generator)
        return _DrawnSAT(self.norms, float(point))


@dataclass(frozen=True)
class _DrawnSAT(SAT):
    """SAT's training in one norm: the one at `point`, in [0, 1), of the way through them."""

    point: float = 0.0

    def on_attacked(self, step: Step, attack: Attack) -> Terms:
        norms = in_norms(attack, self.norms, "sat").norms or ()
        alone = in_norms(attack, [norms[int(self.point * len(norms))]], "sat")
        return Adversarial()(step._replace(attack=alone))


@OBJECTIVES.register("avg")
@dataclass(frozen=True)
class AVG(Objective):
    """Mean cross-entropy over every image attacked in every norm, all with the same weight. The
    attack is multi_apgd; one backward to the weights a norm.

    Tramer & Boneh, "Adversarial Training and Robustness for Multiple Perturbations", NeurIPS 2019,
    arXiv:1904.13000, the "avg" strategy.

    Args:
        norms: which; null takes all of the attack's.
    """

    norms: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.norms is not None:
            check_norms("norms", self.norms)

    def check(self, attack: Attack | None) -> None:
        in_norms(attack, self.norms, "avg")

    def on_attacked(self, step: Step, attack: Attack) -> Terms:
        """The logits are, image by image, those of largest loss."""
        search = in_norms(attack, self.norms, "avg").search
        found, y = searched(search, step).found.values(), step.batch.y
        logits = logits_of(step.model, [own.x_adv for own in found], step.engine)
        losses = torch.stack([cross_entropy(own, y) for own in logits])  # (m, B)
        worst = losses.argmax(0)
        rows = torch.arange(len(y), device=worst.device)
        return Terms(losses.mean(), torch.stack(logits).detach()[worst, rows])
