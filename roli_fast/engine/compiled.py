"""A model's passes through torch.compile, for those who ask: it pays in long runs alone."""

import logging
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from roli_fast.engine.graph import first_line, say_once

logger = logging.getLogger("roli_fast.engine")

BACKEND = "inductor"
"""Of torch.compile; it needs a C++ compiler, on a GPU Triton."""


class CompiledPasses:
    """Calls a model through one compiled function; as it is where that fails.

    Compiled once a model, for as long as it lives, and once again for each shape and dtype of a
    batch, with and without a gradient: seconds to minutes each, paid when they first come. Weights
    are inputs of the compiled function: frozen, merged, converted or trained further, it takes them
    as they are at the call. Its results differ in the last bits, and a model that draws draws other
    numbers.

    Args:
        model: a module; another callable runs as it is, and a warning says so.
    """

    def __init__(self, model: Callable[[Tensor], Tensor]) -> None:
        self._model = model
        self._state = _State()
        if not isinstance(model, nn.Module):
            self._refuse("it is no nn.Module")
            return
        if model in states:
            self._state = states[model]
            return
        states[model] = self._state
        logger.info("compiling a model, once a shape of its batches: this takes a while")
        try:
            self._state.call = _compiled()
        except Exception as error:  # torch without a compiler for this Python, say
            self._refuse(first_line(error))

    def __call__(self, x: Tensor) -> Tensor:
        """What the model returns."""
        if self._state.call is None:
            return self._model(x)
        try:
            self._try(x)
            return self._state.call(self._model, x)
        except Exception as error:
            reason = first_line(error)
        # out here, where the error no longer holds tensors; a mistake of the model's own, or a
        # stop, comes again and is raised
        found = self._model(x)
        self._refuse(reason)
        return found

    def _try(self, x: Tensor) -> None:
        """A pass and its backward, thrown away: the backward may compile, and fail, by itself,
        where nobody could go back any more."""
        kind = x.device.type
        graph = torch.is_grad_enabled() and x.requires_grad
        key = (x.shape, x.stride(), x.dtype, x.device, torch.is_autocast_enabled(kind))
        if not graph or key in self._state.tried:
            return
        assert self._state.call is not None
        with torch.random.fork_rng([x.device] if kind == "cuda" else []):
            leaf = x.detach().clone().requires_grad_(True)
            torch.autograd.grad(self._state.call(self._model, leaf).sum(), leaf)
        self._state.tried.add(key)

    def _refuse(self, reason: str) -> None:
        self._state.call = None
        say_once(self._model, f"compile=True: this model runs uncompiled: {reason}")


@dataclass
class _State:
    """A model's compiled function (model, x) -> logits, None once it failed."""

    call: Callable[[Any, Tensor], Tensor] | None = None
    tried: set[Hashable] = field(default_factory=set)


states: "WeakKeyDictionary[nn.Module, _State]" = WeakKeyDictionary()


def _pass(model: Any, x: Tensor) -> Tensor:
    return model(x)


def _compiled() -> Callable[[Any, Tensor], Tensor]:
    """A function of its own for each model: torch counts compilations by a function's code, and
    gives up after a few. It takes the model as an argument, so that it does not keep it alive."""
    own = FunctionType(_pass.__code__.replace(), globals(), "compiled_pass")
    return torch.compile(own, backend=BACKEND, dynamic=False)
