"""In which mode a method updates a network: dropout, stochastic depth, BN."""

from dataclasses import dataclass

from timm.layers.drop import DropPath
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from roli_fast.models import Classifier
from roli_fast.peft.base import Method


class Inserted:
    """Mark of a module that a tuning method put into a network.

    Its own dropout is active in updates while it trains, whatever the backbone's modes; the attack
    puts the whole model into eval mode and so turns it off.
    """


@dataclass(frozen=True, kw_only=True)
class Modes(Method):
    """The modes of the backbone in updates, fields of every method.

    Args:
        backbone_dropout: the backbone's own dropout is active in updates.
        drop_path: the backbone's stochastic depth is active in updates.
        batch_norm: BN layers use the batch's statistics in updates and move the running ones; else
            they use the running ones and leave them as they are.
    """

    backbone_dropout: bool = False
    drop_path: bool = False
    batch_norm: bool = False

    def train_mode(self, model: Classifier) -> None:
        """Set every module's mode by the fields."""
        model.train(self.backbone_dropout)
        for module in model.modules():
            if isinstance(module, DropPath):
                module.train(self.drop_path)
            elif isinstance(module, _BatchNorm):
                module.train(self.batch_norm)
            elif isinstance(module, Inserted) and isinstance(module, nn.Module):
                module.train(any(p.requires_grad for p in module.parameters(recurse=False)))
