"""Passes through torch.compile: the same numbers, compiled once a model, or a reason why not."""

import gc
import logging
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tiny_models import Mixed, images, untouched
from torch import Tensor, nn

from roli_fast.engine import Engine, InputGradient, compiled, forget
from roli_fast.errors import ArgumentTypeError

X, Y = images(4, 3, 6, 6), torch.tensor([0, 3, 1, 2])


class Backend:
    """torch.compile's backend, without a compiler; `graphs` counts what it was given."""

    def __init__(self) -> None:
        self.graphs = 0
        self.problem: Exception | None = None

    def __call__(self, module: torch.fx.GraphModule, _inputs: Any) -> Callable[..., Any]:
        self.graphs += 1
        if self.problem is not None:
            raise self.problem
        return module.forward


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    made = Backend()
    monkeypatch.setattr(compiled, "BACKEND", made)
    yield made
    torch.compiler.reset()


def close(model: Any) -> bool:
    """Whether gradient, losses and logits are the same compiled and as they are."""
    found = []
    for engine in (Engine(compile=True), Engine()):
        with InputGradient(engine.bind(model)) as gradient:
            found.append((*gradient(X, Y), *gradient.evaluate(X, Y)))
    return all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(*found, strict=True))


def test_compiled_once_a_model_with_the_weights_of_now(backend: Backend) -> None:
    """More models of one class than torch, which gives up in time, compiles one function for."""
    models = [Mixed() for _ in range(3)]
    for number in range(3):
        before = backend.graphs
        with untouched(models[number]), torch._dynamo.config.patch(recompile_limit=3):
            assert close(models[number])
        assert backend.graphs > before
    with torch.no_grad():
        models[0].head.weight.mul_(0.5)
    before, gone = backend.graphs, weakref.ref(models[0])
    assert close(models[0]) and backend.graphs == before
    models.clear()
    gc.collect()
    assert gone() is None


def test_what_cannot_be_compiled_runs_as_it_is(
    backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    model, backend.problem = Mixed(), RuntimeError("no C++ compiler was found")
    for _ in range(2):
        with untouched(model):
            assert close(model)
    text = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(text) == 1 and text[0].startswith("compile=True: this model runs uncompiled: ")
    tried = backend.graphs
    assert close(model) and backend.graphs == tried
    backend.problem = None
    forget(model)
    assert close(model) and backend.graphs > tried


class Backwards(torch.autograd.Function):
    """A backward that fails where it is compiled."""

    broken = False

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        if Backwards.broken:
            raise RuntimeError("no kernel for this backward")
        return grads[0]


def test_a_backward_that_fails_is_found_before_it_is_needed(
    backend: Backend, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(module: torch.fx.GraphModule, _inputs: Any) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            Backwards.broken = True
            return tuple(Backwards.apply(out) for out in module.forward(*args))

        return call

    monkeypatch.setattr(compiled, "BACKEND", failing)
    assert close(Mixed()) and "no kernel for this backward" in caplog.text


def test_a_mistake_of_the_model_is_raised_as_such(backend: Backend) -> None:
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        close(nn.Sequential(nn.Flatten(), nn.Linear(5, 4)))

    class Two(Mixed):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x), x

    with pytest.raises(ArgumentTypeError, match="`model`: expected a model that returns a logits"):
        close(Two())


def test_a_callable_that_is_no_module(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    model = Mixed().eval()

    def call(x: Tensor) -> Tensor:
        return model(x)

    assert close(call) and close(call) and backend.graphs == 0
    assert [r.getMessage() for r in caplog.records] == [
        "compile=True: this model runs uncompiled: it is no nn.Module"
    ]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_by_a_real_compiler() -> None:
    """torch.compile's own backend, C++ on a CPU: half a minute and more."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 16), nn.Tanh(), nn.Linear(16, 4))
    with untouched(model):
        assert close(model)
    assert compiled.calls[model] is not compiled.as_it_is
    torch.compiler.reset()
