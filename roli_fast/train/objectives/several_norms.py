"""Objectives over the norms of multi_apgd: E-AT and SAT, which draw one an update, and AVG."""

from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

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

    def __post_init__(self) -> None:
        check_norms("norms", self.norms, fewest=2)

    @property
    def counters(self) -> int:
        """For each norm the images found robust, then for each the images attacked."""
        return 2 * len(self.norms)

    def check(self, attack: Attack | None) -> None:
        in_norms(attack, self.norms, "eat")

    def probabilities(self, counts: Sequence[float]) -> list[float]:
        """Of each norm, from the 2m counts so far."""
        robust, seen = counts[: len(self.norms)], counts[len(self.norms) :]
        wrong = [1 - right / max(1, of) for right, of in zip(robust, seen, strict=True)]
        if not all(seen) or not any(wrong):
            wrong = [1.0] * len(self.norms)
        return [share / sum(wrong) for share in wrong]

    def on_attacked(self, step: Step, attack: Attack) -> Terms:
        shares = self.probabilities(step.counts.tolist())  # here the host waits for the device
        index = min(bisect([*accumulate(shares)], step.draw), len(shares) - 1)  # the sum is rounded
        norm, y = self.norms[index], step.batch.y
        found = searched(in_norms(attack, [norm], "eat").search, step).found[norm]
        logits = step.model(step.engine.to_memory_format(found.x_adv))
        counts = torch.zeros_like(step.counts)
        counts[index] = found.robust.sum()
        counts[index + len(self.norms)].fill_(len(y))
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

    def __post_init__(self) -> None:
        if self.norms is not None:
            check_norms("norms", self.norms)

    def check(self, attack: Attack | None) -> None:
        in_norms(attack, self.norms, "sat")

    def on_attacked(self, step: Step, attack: Attack) -> Terms:
        norms = in_norms(attack, self.norms, "sat").norms or ()
        alone = in_norms(attack, [norms[int(step.draw * len(norms))]], "sat")
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

    def images(self, attack: Attack) -> int:
        return len(in_norms(attack, self.norms, "avg").norms or ())

    def on_attacked(self, step: Step, attack: Attack) -> Terms:
        """The logits are, image by image, those of largest loss."""
        search = in_norms(attack, self.norms, "avg").search
        found, y = searched(search, step).found.values(), step.batch.y
        logits = logits_of(step.model, [own.x_adv for own in found], step.engine)
        losses = torch.stack([cross_entropy(own, y) for own in logits])  # (m, B)
        worst = losses.argmax(0)
        rows = torch.arange(len(y), device=worst.device)
        return Terms(losses.mean(), torch.stack(logits).detach()[worst, rows])
