"""Full fine-tuning: every parameter trains."""

from dataclasses import dataclass

import torch
from torch import nn

from roli_fast.peft.base import METHODS, Method


@METHODS.register("full")
@dataclass(frozen=True, kw_only=True)
class Full(Method):
    """All parameters train, in train mode: dropout, DropPath and BN as the model has them."""

    backbone_dropout: bool = True
    drop_path: bool = True
    batch_norm: bool = True

    def prepare(self, model: nn.Module, generator: torch.Generator) -> list[str]:
        return [name for name, _ in model.named_parameters()]
