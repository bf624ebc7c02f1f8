"""TRADES (Zhang et al., "Theoretically Principled Trade-off between Robustness and Accuracy",
ICML 2019, arXiv:1901.08573)."""

from dataclasses import dataclass

from torch import Generator, nn

from roli_fast import losses
from roli_fast.attacks import Attack
from roli_fast.data import Batch
from roli_fast.engine import Engine
from roli_fast.train.objectives.adversarial import Adversarial
from roli_fast.train.objectives.base import (
    OBJECTIVES,
    Objective,
    Terms,
    attacked,
    check_weight,
    logits_of,
    needs_attack,
)


@OBJECTIVES.register("trades")
@dataclass(frozen=True)
class TRADES(Objective):
    """Cross-entropy on the clean images plus beta * KL(p_clean || p_attacked); see `losses.trades`.

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

    def __call__(
        self,
        model: nn.Module,
        batch: Batch,
        attack: Attack | None,
        generator: Generator,
        engine: Engine,
    ) -> Terms:
        """As the base says; its logits are those on the attacked images."""
        if attack is None:
            return Adversarial()(model, batch, None, generator, engine)
        x_adv = attacked(model, batch, attack, generator, engine)
        clean, moved = logits_of(model, [batch.x, x_adv], engine)
        return Terms(losses.trades(clean, moved, batch.y, beta=self.beta), moved.detach())
