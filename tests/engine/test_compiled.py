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
ON = Engine(compile=True)


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


def both(model: Any, engine: Engine = ON, x: Tensor = X, y: Tensor = Y) -> list[tuple[Tensor, ...]]:
    """Gradient, losses and logits, compiled and as they are."""
    found = []
    for one in (engine, Engine(dtype=engine.dtype, attention=engine.attention)):
        with InputGradient(one.bind(model)) as gradient:
            found.append((*gradient(x, y), *gradient.evaluate(x, y)))
    return found


def close(found: list[tuple[Tensor, ...]]) -> bool:
    return all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(*found, strict=True))


def test_the_same_numbers_and_nothing_left_behind(backend: Backend) -> None:
    model = Mixed()
    with untouched(model):
        assert close(both(model))
    assert backend.graphs >= 1
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    before = backend.graphs
    assert close(both(model))  # compiled once: with the weights of now
    assert backend.graphs == before


def test_compiled_once_a_model(backend: Backend) -> None:
    """Nine models of one class: torch gives up after eight of one function."""
    for _ in range(9):
        before = backend.graphs
        assert close(both(Mixed()))
        assert backend.graphs > before


def test_what_cannot_be_compiled_runs_as_it_is(
    backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    model, backend.problem = Mixed(), RuntimeError("no C++ compiler was found")
    for _ in range(2):
        with untouched(model):
            assert close(both(model))
    text = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(text) == 1 and text[0].startswith("compile=True: this model runs uncompiled: ")
    tried = backend.graphs
    both(model)
    assert backend.graphs == tried
    backend.problem = None
    forget(model)
    assert close(both(model)) and backend.graphs > tried


class Backwards(torch.autograd.Function):
    """A backward that fails where it is compiled."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        if Backwards.broken:
            raise RuntimeError("no kernel for this backward")
        return grads[0]

    broken = False


def test_a_backward_that_fails_is_found_before_it_is_needed(
    backend: Backend, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(module: torch.fx.GraphModule, _inputs: Any) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            Backwards.broken = True
            return tuple(Backwards.apply(out) for out in module.forward(*args))

        return call

    monkeypatch.setattr(compiled, "BACKEND", failing)
    model = Mixed()
    with InputGradient(ON.bind(model)) as gradient:
        found = gradient(X, Y)
    with InputGradient(model) as gradient:
        assert all(torch.equal(a, b) for a, b in zip(found, gradient(X, Y), strict=True))
    assert "no kernel for this backward" in caplog.text


def test_a_mistake_of_the_model_is_raised_as_such(
    backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(5, 4))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        both(model)

    class Two(Mixed):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x), x

    with pytest.raises(ArgumentTypeError, match="`model`: expected a model that returns a logits"):
        both(Two())


def test_random_states_are_left_alone(backend: Backend) -> None:
    model = Mixed()
    with torch.random.fork_rng([]):
        torch.manual_seed(3)
        both(model)
        found = torch.rand(3)
        torch.manual_seed(3)
        assert torch.equal(found, torch.rand(3))


def test_a_callable_that_is_no_module(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    model = Mixed().eval()

    def call(x: Tensor) -> Tensor:
        return model(x)

    assert close(both(call)) and close(both(call))
    assert [r.getMessage() for r in caplog.records] == [
        "compile=True: this model runs uncompiled: it is no nn.Module"
    ]
    assert backend.graphs == 0


def test_the_compiled_function_goes_with_the_model(backend: Backend) -> None:
    model = Mixed()
    both(model)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_by_a_real_compiler() -> None:
    """torch.compile's own backend, C++ on a CPU: half a minute and more."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 16), nn.Tanh(), nn.Linear(16, 4))
    with untouched(model):
        assert close(both(model))
    assert compiled.states[model].call is not None
    torch.compiler.reset()
