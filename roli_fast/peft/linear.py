"""Linear probing: only the head trains."""

from dataclasses import dataclass

from roli_fast.models import Classifier
from roli_fast.peft.base import METHODS, Method


@METHODS.register("linear")
@dataclass(frozen=True)
class Linear(Method):
    """The backbone is frozen, in eval mode: no dropout, no DropPath, BN statistics fixed."""

    def prepare(self, model: Classifier) -> list[str]:
        """Names of the head's weight and bias."""
        prefix = model.head_name
        return [f"{prefix}.{name}" for name, _ in model.head.named_parameters()]

    def train_mode(self, model: Classifier) -> None:
        """Everything in eval mode: a linear layer behaves the same in both."""
        model.eval()
