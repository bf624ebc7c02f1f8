"""A model as an attack sees it: logits by way of a method, in the modes that were asked for."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

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
    """What an attack takes for its model: `logits`, a method that calls `model`.

    Where that is in train mode it works on copies of its buffers, so that running statistics move
    in the copies alone.
    """

    def __init__(self, model: Model, logits: Model, modes: Modes = Modes()) -> None:  # noqa: B008
        super().__init__()
        self.model, self.logits, self.modes = model, logits, modes
        self.training = False  # no mode of its own: what is in train mode is the model
        self.copies: list[tuple[dict[str, Any], str, Tensor, Tensor]] = []

    def train(self, mode: bool = True) -> "View":
        """What the engine calls: its eval mode is `modes`."""
        super().train(mode)
        if not mode and isinstance(self.model, nn.Module):
            self.modes.apply(self.model)
            if self.modes.model_training:
                made: dict[Tensor, Tensor] = {}  # one that several modules share stays shared
                self.copies = [
                    (module._buffers, name, own, made.setdefault(own, own.clone()))
                    for module in self.model.modules()
                    for name, own in module._buffers.items()
                    if own is not None
                ]
        return self

    @contextlib.contextmanager
    def with_copies(self) -> Iterator[None]:
        """Within, the copies are in the place of the modules' own buffers.

        `torch.func.functional_call` leaves them in a module that has two names.
        """
        try:
            for owner, name, _own, copy in self.copies:
                owner[name] = copy
            yield
        finally:
            for owner, name, own, _copy in self.copies:
                owner[name] = own

    def forward(self, x: Tensor) -> Tensor:
        with self.with_copies():
            return self.logits(x)
