"""What no registered attack leaves behind in a model or a process, and where its draws come from.

Each row was seen in another library when run: AA is github.com/fra31/auto-attack (a392200), ART
1.20.1, foolbox 3.3.4, torchattacks 3.5.1, Madry's robustness a954124.
"""

import random
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tiny_attacks import generator, has, predicted, short
from tiny_models import Mixed, images, picture, same, untouched
from torch import Tensor, nn

from roli_fast.attacks import ATTACKS, Attack
from roli_fast.norms import NORMS

X = images(6, 3, 6, 6)
Y = predicted(Mixed(), X)
RESTARTING = [name for name in ATTACKS if has(ATTACKS[name], "restarts")]


@pytest.fixture(params=ATTACKS.names())
def attack(request: pytest.FixtureRequest) -> Attack:
    return short(ATTACKS[request.param], "linf")


@pytest.mark.parametrize("around", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("training", [True, False])
def test_a_model_is_given_back(attack: Attack, training: bool, around: Any) -> None:
    """torchattacks: a BN layer in eval inside a train() model trains afterwards. ART: the model
    stays in eval mode. foolbox, ART: gradients of weights are filled. AA: the statistics of a BN in
    train mode move. `untouched` looks at all of it."""
    model = Mixed() if training else Mixed().eval()
    truth = attack(Mixed().eval(), X, Y, generator())
    with around(), untouched(model):
        assert torch.equal(attack(model, X.clone(), Y.clone(), generator()), truth)
    assert int(model.late_norm.num_batches_tracked) == 0


class Broken(Mixed):
    """Fails at one of its forwards, with what a user's Ctrl-C raises as well."""

    def __init__(self, at: int, error: type[BaseException]) -> None:
        super().__init__()
        self.left, self.error = at, error

    def forward(self, x: Tensor) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise self.error("broken")
        return super().forward(x)


@pytest.mark.parametrize(("last", "error"), [(False, RuntimeError), (True, KeyboardInterrupt)])
def test_after_an_exception_too(attack: Attack, last: bool, error: type[BaseException]) -> None:
    """torchattacks: the model stays in eval."""
    forwards = attack.run(Mixed(), X, Y, generator()).cost.forwards
    model = Broken(forwards - 1 if last else 0, error)
    with untouched(model), pytest.raises(error, match="broken"):
        attack(model, X, Y, generator())


def global_numbers() -> tuple[float, float, float]:
    return torch.rand(1).item(), np.random.rand(), random.random()


def test_the_global_generators_go_on_as_if_nothing_had_run(attack: Attack) -> None:
    """AA, torchattacks: the next torch.rand after each attack is the same number."""
    with torch.random.fork_rng():
        numbers = []
        for attacked in (False, True):
            torch.manual_seed(11)
            np.random.seed(11)
            random.seed(11)
            first = global_numbers()
            if attacked:
                attack(Mixed(), X, Y, generator())
            numbers.append((first, global_numbers()))
        assert numbers[0] == numbers[1] and numbers[0][0] != numbers[0][1]


@pytest.mark.parametrize("norm", NORMS.names())
@pytest.mark.parametrize("name", ATTACKS.names())
def test_a_generator_or_else_the_global_seed_decides(name: str, norm: str) -> None:
    """And the global generator is drawn from, not reseeded: its next numbers differ."""
    attack = short(ATTACKS[name], norm)
    with torch.random.fork_rng():
        given, found, after = [], [], []
        for seed in (5, 5, None):
            if seed is not None:
                torch.manual_seed(seed)
            found.append(attack(Mixed(), X, Y))
            after.append(torch.rand(1).item())
            given.append(attack(Mixed(), X, Y, generator(1)))
    assert torch.equal(found[0], found[1]) and after[0] == after[1] != after[2]
    assert torch.equal(given[0], given[1]) and torch.equal(given[0], given[2])


@pytest.mark.parametrize("kind", ATTACKS.names())
def test_the_generator_moves_on_alike_whatever_is_found(kind: str) -> None:
    states = []
    for eps, y in ((1e-5, Y), (0.5, Y), (0.5, Y[:0])):
        source = generator()
        short(ATTACKS[kind], "linf", eps, restarts=3)(Mixed(), X[: len(y)], y, source)
        states.append(source.get_state())
    assert torch.equal(states[0], states[1]) and torch.equal(states[0], states[2])


class Traced:
    """What torch.compile does with a graph, without a compiler."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, graph: Any, _inputs: list[Tensor]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            self.calls += 1
            return graph(*arguments)

        return run


def test_a_compiled_model_is_attacked_and_the_tracer_stays(attack: Attack) -> None:
    """AA: works, but sys.settrace(None) removes debuggers' tracers."""
    torch.compiler.reset()
    backend = Traced()
    model: Any = torch.compile(Mixed(), backend=backend)
    before, tracer = picture(model), sys.gettrace()

    def trace(*_: Any) -> None:
        return None

    sys.settrace(trace)
    try:
        x_adv = attack(model, X, Y, generator())
        assert sys.gettrace() is trace
    finally:
        sys.settrace(tracer)
    assert backend.calls > 0 and same(picture(model), before)
    torch.testing.assert_close(x_adv, attack(Mixed(), X, Y, generator()), rtol=0, atol=1e-6)


class Basins(nn.Module):
    """Fooled on some islands of a flat sea: a search from a random start finds one or does not."""

    def forward(self, x: Tensor) -> Tensor:
        waves = torch.cos(40 * x.flatten(1)).sum(1)
        return torch.stack((3.5 - waves, waves - 3.5), dim=1)


@pytest.mark.parametrize("name", RESTARTING)
def test_a_later_restart_takes_nothing_away_and_helps_somewhere(name: str) -> None:
    """Madry's random_restarts: `~corr.byte()` selects every row; the last one overwrites all."""
    x = images(256, 4) * 0.4 + 0.3
    model = Basins()
    x = x[predicted(model, x) == 0]
    y = torch.zeros(len(x), dtype=torch.int64)
    options: dict[str, Any] = dict(n_queries=4)
    once, more = (
        predicted(
            model,
            short(ATTACKS[name], "linf", 0.05, restarts=count, **options)(model, x, y, generator()),
        )
        for count in (2, 5)
    )
    assert bool((more >= once).all())
    assert 0 < int(once.sum()) < int(more.sum()) < len(x)
