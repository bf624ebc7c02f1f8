"""Objectives that any attack serves: plain adversarial training, and TRADES."""

from dataclasses import dataclass

from roli_fast import losses
from roli_fast.attacks import Attack
from roli_fast.errors import ArgumentError, describe
from roli_fast.losses import cross_entropy
from roli_fast.train.objectives.base import (
    OBJECTIVES,
    Objective,
    Step,
    Terms,
    attacked,
    check_weight,
    logits_of,
    needs_attack,
)


@OBJECTIVES.register("adversarial")
@dataclass(frozen=True)
class Adversarial(Objective):
    """Mean cross-entropy on the attacked images; on the clean ones where the attack is off.

    Madry et al., ICLR 2018, equation 2.1.

    Args:
        label_smoothing: share of the target spread evenly over all classes, in [0, 1).
    """

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ArgumentError(
                describe("label_smoothing", "a number in [0, 1)", self.label_smoothing)
            )

    def __call__(self, step: Step) -> Terms:
        """As the base says, with the smoothed labels on clean images too."""
        logits = step.model(attacked(step))
        loss = cross_entropy(logits, step.batch.y, label_smoothing=self.label_smoothing).mean()
        return Terms(loss, logits.detach())


@OBJECTIVES.register("trades")
@dataclass(frozen=True)
class TRADES(Objective):
    """Cross-entropy on the clean images plus beta * KL(p_clean || p_attacked); see `losses.trades`
    (Zhang et al., "Theoretically Principled Trade-off between Robustness and Accuracy", ICML 2019,
    arXiv:1901.08573).

    Any attack will do. The paper's own maximises that KL: attack pgd or apgd with loss: kl.

    Args:
        beta: weight of the KL, 1 / lambda in the paper; 6 in its main results.
    """

    beta: float = 6.0

    def __post_init__(self) -> None:
        check_weight("beta", self.beta)

    def check(self, attack: Attack | None) -> None:
        """As the base says: any attack."""
        needs_attack(attack, "trades")

    def on_attacked(self, step: Step, attack: Attack) -> Terms:
        """As the base says; its logits are those on the attacked images."""
        clean, moved = logits_of(step.model, [step.batch.x, attacked(step)], step.engine)
        loss = losses.trades(clean, moved, step.batch.y, beta=self.beta)
        return Terms(loss, moved.detach())
