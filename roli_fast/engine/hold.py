"""A model in eval mode and frozen for an attack, by one thread at a time, and given back."""

import threading
from collections.abc import Callable, Iterator
from functools import partial

from torch import nn
from torch.nn.parallel import DistributedDataParallel

_changed = threading.Condition()
_standing: list["Hold"] = []
"""All holds of this process, oldest first; `_changed` guards it."""


def in_train_mode(model: object) -> bool:
    """Whether a part of `model` that has modes is in train mode."""
    return isinstance(model, nn.Module) and any(part.training for part in _with_modes(model))


class Hold:
    """Inside `with`: `model` is in eval mode and its parameters are frozen.

    Another thread that wants to hold a model which shares a module with this one waits. In one
    thread holds may nest, and end in any order: what an earlier one has changed stays until the
    later ones that share a module with it have ended too.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model, self.ended = model, False
        self._thread = threading.get_ident()
        self._ids = {id(part) for part in model.modules()}
        self._undo: list[Callable[[], None]] = []

    def __enter__(self) -> "Hold":
        with _changed:
            _changed.wait_for(lambda: not any(map(self._waits_for, _standing)))
            _standing.append(self)
        try:
            self._change()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def at_end(self, undo: Callable[[], None]) -> None:
        """Call `undo` when the model is given back: last come, first called."""
        self._undo.append(undo)

    def end(self) -> None:
        """Give the model back, now or with the last hold that builds on this one."""
        self.ended = True
        with _changed:
            for hold in reversed(tuple(_standing)):
                later = _standing[_standing.index(hold) + 1 :]
                if hold.ended and not any(map(hold._shares, later)):
                    _standing.remove(hold)
                    hold._restore()
            _changed.notify_all()

    def _shares(self, other: "Hold") -> bool:
        return not self._ids.isdisjoint(other._ids)

    def _waits_for(self, other: "Hold") -> bool:
        return other._thread != self._thread and self._shares(other)

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

    def _restore(self) -> None:
        while self._undo:
            self._undo.pop()()


def _with_modes(model: nn.Module) -> Iterator[nn.Module]:
    """The parts that can be switched: not what `torch.jit.freeze` and `torch.export` made."""
    if hasattr(model, "training") and not _is_exported(model):
        yield model
        for child in model.children():
            yield from _with_modes(child)


def _is_exported(model: nn.Module) -> bool:
    """`torch.export` gives its modules a `train` and an `eval` of their own, which raise."""
    return "eval" in vars(model)
