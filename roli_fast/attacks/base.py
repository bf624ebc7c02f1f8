"""What every attack has in common, and the table of all attacks."""

from dataclasses import dataclass

from torch import Generator, Tensor

from roli_fast.engine import Cost
from roli_fast.engine.input_gradient import Model
from roli_fast.registry import Registry
from roli_fast.threat import ThreatModel


@dataclass(frozen=True)
class AttackResult:
    """`x_adv` (like x) and the passes that the search cost."""

    x_adv: Tensor
    cost: Cost


class Attack:
    """Base of all attacks. A subclass is a frozen dataclass: its fields are its configuration."""

    @property
    def label(self) -> str:
        """The name used in tables and metrics, "pgd-10" say."""
        raise NotImplementedError

    def under(self, threat: ThreatModel) -> "Attack":
        """The same attack with every field that is None taken from `threat`."""
        raise NotImplementedError

    def run(
        self,
        model: Model,
        x: Tensor,
        y: Tensor,
        generator: Generator | None = None,
        *,
        sample_ids: Tensor | None = None,
    ) -> AttackResult:
        """Search, and report the cost beside the images."""
        raise NotImplementedError

    def __call__(
        self,
        model: Model,
        x: Tensor,
        y: Tensor,
        generator: Generator | None = None,
        *,
        sample_ids: Tensor | None = None,
    ) -> Tensor:
        """Adversarial images for a batch.

        Args:
            model: images (B, ...) -> logits (B, C). It is attacked in eval mode with frozen
                parameters and given back exactly as it was.
            x: images (B, ...) inside the bounds, before normalisation.
            y: labels (B,), int64.
            generator: source of the random start; None takes torch's global generator.
            sample_ids: int64 (B,); the start of a sample depends on one draw of the generator and
                on its id alone. None takes its index in the batch.

        Returns:
            A new tensor like `x`, inside the ball around `x` and inside the bounds.

        Raises:
            ArgumentError: images outside the bounds, labels out of range, and the like.
        """
        return self.run(model, x, y, generator, sample_ids=sample_ids).x_adv


ATTACKS: Registry[type[Attack]] = Registry("attack")
