"""Passes through torch.compile: the same numbers, compiled once a model, or a reason why not."""

import gc
import logging
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from cpu_recorder import recording
from tiny_models import Mixed, images, untouched
from torch import Tensor, nn

from roli_fast.attacks import PGD
from roli_fast.engine import Engine, InputGradient, compiled, forget
from roli_fast.errors import ArgumentTypeError

X, Y = images(4, 3, 6, 6), torch.tensor([0, 3, 1, 2])


class Backend:
    """torch.compile's backend, without a compiler; `graphs` counts what it was given, and `runs`
    how often that ran."""

    def __init__(self) -> None:
        self.graphs = self.runs = 0
        self.problem: Exception | None = None

    def __call__(self, module: torch.fx.GraphModule, _inputs: Any) -> Callable[..., Any]:
        self.graphs += 1
        if self.problem is not None:
            raise self.problem

        def run(*inputs: Any) -> Any:
            self.runs += 1
            return module.forward(*inputs)

        return run


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
    models = [Mixed() for _ in range(2)]
    for number in range(2):
        before = backend.graphs
        with untouched(models[number]), torch._dynamo.config.patch(recompile_limit=2):
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


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the passes take that "auto" measures, compiled and as they are by turns."""
    seconds: list[float] = []

    def timer(call: Callable[[], object]) -> float:
        call()
        return seconds.pop(0)

    monkeypatch.setitem(compiled.TIMERS, "cpu", timer)
    return seconds


AUTO = Engine(compile="auto")


@pytest.mark.parametrize(("seconds", "quicker"), [([1.0, 2.0], True), ([2.0, 1.0], False)])
def test_auto_measures_once_and_keeps_the_quicker(
    backend: Backend,
    timed: list[float],
    seconds: list[float],
    quicker: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, timed[:] = Mixed(), seconds
    with caplog.at_level("INFO", "roli_fast.engine"), InputGradient(AUTO.bind(model)) as gradient:
        gradient.evaluate(X, Y)
        assert backend.graphs == 0  # a forward alone is not worth it
        with untouched(model):
            found = gradient(X, Y)
        before = backend.runs
        gradient(X, Y)
        gradient.evaluate(X, Y)
    assert timed == [] and (backend.runs > before) is quicker
    with InputGradient(model) as plain:
        for ours, theirs in zip(found, plain(X, Y), strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    said = f"compile='auto': {'' if quicker else 'not '}compiled; a pass takes "
    assert [m for m in caplog.messages if m.startswith(said)]


def test_on_a_gpu_the_quickest_kernels_without_graphs_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(torch, "compile", lambda _call, **options: asked.append(options))
    for device in ("cpu", "cuda"):
        compiled._compile(Mixed(), device)
    assert [options["mode"] for options in asked] == [None, "max-autotune-no-cudagraphs"]


@pytest.mark.parametrize(
    "engine", [Engine(compile=True, cuda_graph=True), replace(AUTO, cuda_graph=True)]
)
def test_a_compiled_model_is_recorded(
    backend: Backend,
    timed: list[float],
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What the recording holds is the compiled function, which runs in it once more."""
    model, attack, timed[:] = Mixed(), PGD(steps=3), [1.0, 2.0]
    within: list[int] = []
    with recording(monkeypatch) as recorder:
        record = recorder.record

        def counted(work: Any, *, limited: bool) -> Any:
            before, found = backend.runs, record(work, limited=limited)
            within.append(backend.runs - before)
            return found

        monkeypatch.setattr(recorder, "record", counted)
        for seed in range(2):
            x = images(4, 3, 6, 6, seed=seed)
            found, plain = (
                attack(model, x, Y, torch.Generator().manual_seed(seed), engine=own)
                for own in (engine, Engine(cuda_graph=False))
            )
            assert (found != plain).float().mean() < 0.02
    assert within == [1] and recorder.log == ["record", *["replay"] * 5]
    assert compiled.known[model].call is not compiled.as_it_is
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_by_a_real_compiler() -> None:
    """torch.compile's own backend, C++ on a CPU: half a minute and more."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 16), nn.Tanh(), nn.Linear(16, 4))
    with untouched(model):
        assert close(model)
    assert compiled.known[model].call is not compiled.as_it_is
    torch.compiler.reset()
