"""A model as an attack sees it: logits of images in [0, 1], in the modes that were asked for."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
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
    """What an attack takes for its model: `logits` of images in [0, 1], computed by `model`.

    Where that is in train mode it works on copies of its buffers, so that running statistics move
    in the copies alone.
    """

    def __init__(self, model: Model, logits: Model, modes: Modes) -> None:
        super().__init__()
        self.model, self.logits, self.modes = model, logits, modes
        self.training = False  # no mode of its own: what is in train mode is the model
        self.copies: list[_Copy] = []

    def train(self, mode: bool = True) -> "View":
        """What the engine calls: its eval mode is `modes`."""
        super().train(mode)
        if not mode and isinstance(self.model, nn.Module):
            self.modes.apply(self.model)
            if self.modes.model_training:
                self.copies = copies(self.model)
        return self

    def forward(self, x: Tensor) -> Tensor:
        with in_place(self.copies):
            return self.logits(x)


class _Copy(NamedTuple):
    """A buffer, where its module keeps it, and what takes its place."""

    owner: dict[str, Tensor | None]
    name: str
    own: Tensor
    copy: Tensor


def copies(model: nn.Module) -> list[_Copy]:
    """Copies of a model's buffers; one that several modules share stays shared."""
    made: dict[Tensor, Tensor] = {}
    return [
        _Copy(module._buffers, name, own, made.setdefault(own, own.clone()))
        for module in model.modules()
        for name, own in module._buffers.items()
        if own is not None
    ]


@contextlib.contextmanager
def in_place(replaced: list[_Copy]) -> Iterator[None]:
    """The copies in the place of the modules' own.

    `torch.func.functional_call` leaves them in a module that has two names.
    """
    try:
        for owner, name, _own, copy in replaced:
            owner[name] = copy
        yield
    finally:
        for owner, name, own, _copy in replaced:
            owner[name] = own


def without_rounding(images: Tensor) -> Tensor:
    """Un-normalised images that leave [0, 1] by a rounding, back inside; others as they are."""
    inside = images.clamp(0, 1)
    close = (images - inside).abs() <= 8 * torch.finfo(images.dtype).eps
    return torch.where(close, inside, images)
