"""Plain adversarial training (Madry et al., ICLR 2018, equation 2.1)."""

from dataclasses import dataclass

from torch import Generator, nn

from roli_fast.attacks import Attack
from roli_fast.data import Batch
from roli_fast.engine import Engine
from roli_fast.errors import ArgumentError, describe
from roli_fast.losses import cross_entropy
from roli_fast.train.objectives.base import OBJECTIVES, Objective, Terms, attacked


@OBJECTIVES.register("adversarial")
@dataclass(frozen=True)
class Adversarial(Objective):
    """Mean cross-entropy on the attacked images; on the clean ones where the attack is off.

    Args:
        label_smoothing: share of the target spread evenly over all classes, in [0, 1).
    """

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ArgumentError(
                describe("label_smoothing", "a number in [0, 1)", self.label_smoothing)
            )

    def __call__(
        self,
        model: nn.Module,
        batch: Batch,
        attack: Attack | None,
        generator: Generator,
        engine: Engine,
    ) -> Terms:
        """As the base says."""
        logits = model(attacked(model, batch, attack, generator, engine))
        loss = cross_entropy(logits, batch.y, label_smoothing=self.label_smoothing).mean()
        return Terms(loss, logits.detach())
