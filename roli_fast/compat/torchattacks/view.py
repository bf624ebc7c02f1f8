"""A model as an attack sees it: behind its normalisation, in the modes that were asked for."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from roli_fast.engine.input_gradient import Model


@dataclass(frozen=True)
class Modes:
    """The arguments of `set_model_training_mode`."""

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
    """`model`, for images in [0, 1].

    Where it is in train mode it works on copies of its buffers, so that running statistics move in
    the copies alone.
    """

    def __init__(self, model: Model, normalize: nn.Module | None, modes: Modes) -> None:
        super().__init__()
        self.model, self.normalize, self.modes = model, normalize, modes
        self._copies: dict[str, Tensor] = {}

    def train(self, mode: bool = True) -> "View":
        """What the engine calls: its eval mode is `modes`."""
        super().train(mode)
        if not mode and isinstance(self.model, nn.Module):
            self.modes.apply(self.model)
            if self.modes.model_training:
                self._copies = dict(copies(self.model))
        return self

    def forward(self, x: Tensor) -> Tensor:
        if self.normalize is not None:
            x = self.normalize.to(x.device)(x)
        if self._copies and isinstance(self.model, nn.Module):
            return functional_call(self.model, self._copies, (x,))
        return self.model(x)


def copies(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names and copies of a model's buffers."""
    return ((name, buffer.clone()) for name, buffer in model.named_buffers())


def without_rounding(images: Tensor) -> Tensor:
    """Un-normalised images that leave [0, 1] by a rounding, back inside; others as they are."""
    inside = images.clamp(0, 1)
    close = (images - inside).abs() <= 8 * torch.finfo(images.dtype).eps
    return torch.where(close, inside, images)
