"""A model's passes through torch.compile, for those who ask: it pays in long runs alone."""

import logging
from collections.abc import Callable
from types import FunctionType
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn

from roli_fast.engine.graph import first_line, say_once

logger = logging.getLogger("roli_fast.engine")

BACKEND = "inductor"
"""Of torch.compile; it needs a C++ compiler, on a GPU Triton."""

calls: "WeakKeyDictionary[nn.Module, Callable[[Any, Tensor], Tensor]]" = WeakKeyDictionary()
"""Model -> its compiled function (model, x) -> logits, or `as_it_is` once that failed."""

_tried: "WeakSet[nn.Module]" = WeakSet()


def as_it_is(model: Any, x: Tensor) -> Tensor:
    """What the model returns."""
    return model(x)


def compiled_pass(model: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """What the model returns, by its compiled function; as it is where that fails, and it says so.

    Compiled once a model, for as long as it lives, and once again for each shape and dtype of a
    batch, with and without a gradient: seconds to minutes each, paid when they first come. Weights
    are inputs of the function: merged, converted or trained further, it takes those of the call.
    Its results differ in the last bits, and a model that draws draws other numbers.
    """
    if not isinstance(model, nn.Module):
        reason = "it is no nn.Module"
    else:
        try:
            if model not in calls:
                logger.info("compiling a model, once a shape of its batches: this takes a while")
                # a function of its own for each model: torch counts compilations by a function's
                # code, and gives up after a few. A module's own would keep the module alive
                own = FunctionType(as_it_is.__code__.replace(), globals(), "compiled_pass")
                calls[model] = torch.compile(own, backend=BACKEND, dynamic=False)
            if torch.is_grad_enabled() and x.requires_grad and model not in _tried:
                _try_backward(model, x)
            return calls[model](model, x)
        except Exception as error:
            if calls.get(model) is as_it_is:
                raise
            reason = first_line(error)
    # out here, where the error no longer holds tensors; the model's own mistake is raised again
    found = model(x)
    if isinstance(model, nn.Module):
        calls[model] = as_it_is
    say_once(model, f"compile=True: this model runs uncompiled: {reason}")
    return found


def _try_backward(model: nn.Module, x: Tensor) -> None:
    """A pass and its backward, thrown away: the backward is compiled, and may fail, by itself,
    where nobody could go back any more."""
    _tried.add(model)
    with torch.random.fork_rng([x.device] if x.is_cuda else []):
        leaf = x.detach().clone().requires_grad_(True)
        torch.autograd.grad(calls[model](model, leaf).sum(), leaf)


def forget_compiled(model: nn.Module) -> None:
    """Free a model's compiled function; it is compiled anew, also where it failed."""
    calls.pop(model, None)
    _tried.discard(model)
