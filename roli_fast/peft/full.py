"""Full fine-tuning: every parameter trains."""

from dataclasses import dataclass

from roli_fast.models import Classifier
from roli_fast.peft.base import METHODS, Method


@METHODS.register("full")
@dataclass(frozen=True)
class Full(Method):
    """All parameters train, in train mode: dropout, DropPath and BN as the model has them."""

    def prepare(self, model: Classifier) -> list[str]:
        """Names of all parameters."""
        return [name for name, _ in model.named_parameters()]

    def train_mode(self, model: Classifier) -> None:
        """The whole model in train mode."""
        model.train()
