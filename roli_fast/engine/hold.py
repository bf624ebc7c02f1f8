"""A model in eval mode and frozen for an attack, by one thread at a time, and given back."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from functools import partial
from weakref import WeakKeyDictionary

from torch import nn
from torch.nn.parallel import DistributedDataParallel

_locks: "WeakKeyDictionary[nn.Module, threading.RLock]" = WeakKeyDictionary()
"""A model's first part with weights, which is that of a module around it too -> the lock of who
holds it."""


def in_train_mode(model: object) -> bool:
    """Whether a part of `model` that has modes is in train mode."""
    return isinstance(model, nn.Module) and any(part.training for part in _with_modes(model))


class Hold:
    """Inside `with`: `model` is in eval mode and its parameters are frozen.

    Another thread that wants to hold the model, or one around it, waits. In one thread holds may
    nest.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model, self._undo = model, contextlib.ExitStack()

    def __enter__(self) -> "Hold":
        first = next((part for part in self.model.modules() if part._parameters), None)
        if first is not None:
            self._undo.enter_context(_locks.setdefault(first, threading.RLock()))
        try:
            self._change()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def at_end(self, undo: Callable[[], object]) -> None:
        """Call `undo` when the model is given back: last come, first called."""
        self._undo.callback(undo)

    def end(self) -> None:
        """Give the model back."""
        self._undo.close()

    def _change(self) -> None:
        modes = [(part, part.training) for part in _with_modes(self.model)]
        unfrozen = [p for p in self.model.parameters() if p.requires_grad]

        def restore() -> None:
            for part, training in modes:
                part.training = training
            for parameter in unfrozen:
                parameter.requires_grad_(True)

        self.at_end(restore)
        for part in self.model.modules():
            if isinstance(part, DistributedDataParallel):  # inside another module
                self.at_end(partial(vars(part).pop, "forward"))
                vars(part)["forward"] = part.module  # without an exchange of buffers
        if any(map(_is_exported, self.model.modules())):
            for part, _ in modes:
                part.training = False
        else:
            self.model.eval()
        for parameter in unfrozen:
            parameter.requires_grad_(False)


def _with_modes(model: nn.Module) -> Iterator[nn.Module]:
    """The parts that can be switched: not what `torch.jit.freeze` and `torch.export` made."""
    if hasattr(model, "training") and not _is_exported(model):
        yield model
        for child in model.children():
            yield from _with_modes(child)


def _is_exported(model: nn.Module) -> bool:
    """`torch.export` gives its modules a `train` and an `eval` of their own, which raise."""
    return "eval" in vars(model)
