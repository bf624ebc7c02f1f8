"""A model as an attack sees it: logits by way of a method, in the modes that were asked for."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from roli_fast.engine.input_gradient import Model


@dataclass(frozen=True)
class Modes:
    """The arguments of torchattacks' `set_model_training_mode`; all of it in eval mode."""

    model_training: bool = False
    batchnorm_training: bool = False
    dropout_training: bool = False

    def apply(self, model: nn.Module) -> None:
        """Put a model that is in eval mode into these modes."""
        if not self.model_training:
            return
        model.train()
        for module in model.modules():
            kept = isinstance(module, _BatchNorm) and not self.batchnorm_training
            if kept or (isinstance(module, _DropoutNd) and not self.dropout_training):
                module.eval()


class View(nn.Module):
    """What an attack takes for its model: `logits`, which calls `model` (None: not known)."""

    def __init__(self, model: Model | None, logits: Model, modes: Modes = Modes()) -> None:  # noqa: B008
        super().__init__()
        self.model, self.logits, self.modes = model, logits, modes
        self.training = False  # no mode of its own: what is in train mode is the model

    def train(self, mode: bool = True) -> "View":
        """What the engine calls: its eval mode is `modes`."""
        super().train(mode)
        if not mode and isinstance(self.model, nn.Module):
            self.modes.apply(self.model)
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x)


@contextlib.contextmanager
def kept_buffers(model: nn.Module | None) -> Iterator[None]:
    """Within, a model in train mode may move its statistics; they are given back."""
    own = [] if model is None else [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, before in own:
                buffer.copy_(before)
