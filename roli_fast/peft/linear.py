"""Linear probing: only the head trains."""

from dataclasses import dataclass

import torch

from roli_fast.models import Classifier
from roli_fast.peft.base import METHODS, head_names
from roli_fast.peft.modes import Modes


@METHODS.register("linear")
@dataclass(frozen=True)
class Linear(Modes):
    """The backbone is frozen, in eval mode: no dropout, no DropPath, BN statistics fixed."""

    def prepare(self, model: Classifier, generator: torch.Generator) -> list[str]:
        """Names of the head's weight and bias."""
        return head_names(model)
