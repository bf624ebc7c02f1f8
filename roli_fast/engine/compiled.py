"""A model's passes through torch.compile, for those who ask: it pays in long runs alone."""

import logging
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import FunctionType
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from roli_fast.engine.graph import first_line, say_once

logger = logging.getLogger("roli_fast.engine")

BACKEND = "inductor"
"""Of torch.compile; it needs a C++ compiler, on a GPU Triton."""

MODES = {"cuda": "max-autotune-no-cudagraphs"}
"""By device type: the quickest kernels, without CUDA graphs of its own inside the engine's."""


def _event_seconds(call: Callable[[], object]) -> float:
    found = []
    for _ in range(7):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        found.append(start.elapsed_time(end) / 1e3)
    return statistics.median(found[2:])


TIMERS: dict[str, Callable[[Callable[[], object]], float]] = {"cuda": _event_seconds}
"""Device type -> the seconds that a call takes; on others "auto" compiles nothing."""


@dataclass
class Compiled:
    """A model's compiled function, (model, x) -> logits, or `as_it_is` once that failed; whether
    its backward was tried; and whether it was measured to be quicker, None before that."""

    call: Callable[[Any, Tensor], Tensor]
    tried: bool = False
    quicker: bool | None = None


known: "WeakKeyDictionary[nn.Module, Compiled]" = WeakKeyDictionary()


def logits_in(output: Any) -> Any:
    """The logits in what a network returns: the tensor itself, or its `.logits`."""
    plain = isinstance(output, (Tensor, Proxy))  # a trace of torch.fx has every attribute
    return output if plain else getattr(output, "logits", output)


def as_it_is(model: Any, x: Tensor) -> Tensor:
    """What the model returns."""
    return model(x)


def compiled_pass(
    model: Callable[[Tensor], Tensor], wanted: Literal["auto", True], x: Tensor
) -> Tensor:
    """What the model returns, by its compiled function; as it is where that fails, and it says so.

    Compiled once a model, for as long as it lives, and once again for each shape and dtype of a
    batch, with and without a gradient: seconds to minutes each, paid when they first come. Weights
    are inputs of the function: merged, converted or trained further, it takes those of the call.
    Its results differ in the last bits, and a model that draws draws other numbers.

    Args:
        model: images (B, ...) -> logits (B, C).
        wanted: "auto" compiles on a GPU at the first pass with a gradient, measures it there beside
            the model as it is, and keeps the quicker.
        x: images.
    """
    graded = torch.is_grad_enabled() and x.requires_grad
    if not isinstance(model, nn.Module):
        return _uncompiled(model, wanted, x, "it is no nn.Module")
    own = known.get(model)
    if wanted == "auto":
        if x.device.type not in TIMERS or (own.quicker is False if own else not graded):
            return model(x)
    try:
        own = own or _compile(model, x.device.type)
        if graded:
            _try(own, model, wanted, x)
        call = as_it_is if wanted == "auto" and own.quicker is False else own.call
        return call(model, x)
    except Exception as error:
        if own and own.call is as_it_is:
            raise
        reason = first_line(error)
    return _uncompiled(model, wanted, x, reason)  # out here, where the error holds no more tensors


def _uncompiled(
    model: Callable[[Tensor], Tensor], wanted: object, x: Tensor, reason: str
) -> Tensor:
    """What the model returns, now and from now on as it is; its own mistake is raised again."""
    found = model(x)
    if isinstance(model, nn.Module):
        known[model] = Compiled(as_it_is, tried=True, quicker=False)
    say_once(model, f"compile={wanted!r}: this model runs uncompiled: {reason}")
    return found


def _compile(model: nn.Module, device: str) -> Compiled:
    logger.info("compiling a model, once a shape of its batches: this takes a while")
    # a function of its own for each model: torch counts compilations by a function's code, and
    # gives up after a few. A module's own would keep the module alive
    own = FunctionType(as_it_is.__code__.replace(), globals(), "compiled_pass")
    call = torch.compile(own, backend=BACKEND, mode=MODES.get(device), dynamic=False)
    known[model] = found = Compiled(call)
    return found


def _try(own: Compiled, model: nn.Module, wanted: object, x: Tensor) -> None:
    """A pass and its backward, thrown away, once: the backward is compiled, and may fail, by
    itself, where nobody could go back any more. For "auto" some more, whose time is taken."""

    def run(call: Callable[[Any, Tensor], Tensor]) -> None:
        leaf = x.detach().clone().requires_grad_(True)
        torch.autograd.grad(logits_in(call(model, leaf)).sum(), leaf)

    with torch.random.fork_rng([x.device] if x.is_cuda else []):
        if not own.tried:
            own.tried = True
            run(own.call)
        if wanted == "auto" and own.quicker is None:
            timer = TIMERS[x.device.type]
            mine, plain = (timer(partial(run, call)) for call in (own.call, as_it_is))
            own.quicker = mine < plain
            text = f"compile='auto': {'' if own.quicker else 'not '}compiled; a pass takes "
            text += f"{1e3 * mine:.3g} ms compiled, {1e3 * plain:.3g} ms as it is"
            say_once(model, text, logging.INFO)


def forget_compiled(model: nn.Module) -> None:
    """Free a model's compiled function; it is compiled anew, also where it failed."""
    known.pop(model, None)
