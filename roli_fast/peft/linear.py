"""Linear probing: only the head trains."""

from dataclasses import dataclass

import torch
from torch import nn

from roli_fast.peft.base import METHODS, Method, head_names


@METHODS.register("linear")
@dataclass(frozen=True)
class Linear(Method):
    """The backbone is frozen, in eval mode: no dropout, no DropPath, BN statistics fixed."""

    def prepare(self, model: nn.Module, generator: torch.Generator) -> list[str]:
        return head_names(model)
