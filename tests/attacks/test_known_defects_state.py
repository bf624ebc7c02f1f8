"""What other attack libraries leave behind in a model or a process, and this one does not.

The rows of `test_known_defects.TABLE` that speak of state; each test begins with its row.
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


@pytest.fixture(params=NORMS.names())
def norm(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=ATTACKS.names())
def attack(request: pytest.FixtureRequest) -> Attack:
    return short(ATTACKS[request.param], "linf")


def modes(model: nn.Module) -> dict[str, bool]:
    return {name: module.training for name, module in model.named_modules()}


def test_a_frozen_batch_norm_stays_in_eval_mode(attack: Attack) -> None:
    """torchattacks, BN layer in eval inside a train() model: BN is in train mode afterwards."""
    model = Mixed()
    attack(model, X, Y, generator())
    assert model.training and model.late_norm.training and not model.norm.training


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


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_after_an_exception_the_model_is_as_before(
    attack: Attack, last: bool, error: type[BaseException]
) -> None:
    """torchattacks, exception in the attack: the model stays in eval."""
    forwards = attack.run(Mixed(), X, Y, generator()).cost.forwards
    model = Broken(forwards - 1 if last else 0, error)
    before = modes(model)
    with untouched(model), pytest.raises(error, match="broken"):
        attack(model, X, Y, generator())
    assert modes(model) == before and model.training


@pytest.mark.parametrize("training", [True, False])
def test_no_gradient_of_a_weight_is_filled_or_changed(attack: Attack, training: bool) -> None:
    """foolbox LinfPGD: weight.grad is filled and accumulates. ART PGD: weight.grad filled."""
    model = Mixed().train(training)
    for parameter in model.parameters():
        parameter.grad = None
    kept = torch.full_like(model.conv.weight, 3.0)
    model.head.weight.requires_grad_(True)
    model.conv.weight.grad = kept
    attack(model, X, Y, generator())
    assert [n for n, p in model.named_parameters() if p.grad is not None] == ["conv.weight"]
    assert model.conv.weight.grad is kept and bool((kept == 3).all())


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_comes_back_and_tensors_are_taken(attack: Attack, training: bool) -> None:
    """ART PGD: model.training False afterwards (was True); torch tensors as x: AttributeError."""
    model = Mixed().train(training)
    before = modes(model)
    assert isinstance(attack(model, X, Y, generator()), Tensor)
    assert modes(model) == before


def test_statistics_of_a_training_model_do_not_move(attack: Attack) -> None:
    """AA with a train-mode model: runs, but the running statistics moved (8 batches)."""
    model = Mixed().train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    truth = attack(Mixed().eval(), X, Y, generator())
    for _ in range(3):
        assert torch.equal(attack(model, X, Y, generator()), truth)
    assert same(before, dict(model.named_buffers()))
    assert int(model.late_norm.num_batches_tracked) == 0


def global_numbers() -> tuple[float, float, float]:
    return torch.rand(1).item(), np.random.rand(), random.random()


def test_the_global_generators_go_on_as_if_nothing_had_run(attack: Attack) -> None:
    """APGD seed (AA and torchattacks): the next torch.rand after each attack is the same number."""
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


def test_without_a_generator_the_global_one_is_drawn_from_and_not_reseeded(
    attack: Attack,
) -> None:
    """The same row: after attacks that draw from it, its next numbers differ."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        found = []
        for _ in range(3):
            attack(Mixed(), X, Y)
            found.append(torch.rand(1).item())
        assert len(set(found)) == 3


@pytest.mark.parametrize("name", ATTACKS.names())
def test_results_do_not_depend_on_the_batch_size(name: str, norm: str) -> None:
    """AA APGD, same seed, bs 8 vs 4: images differ by up to 2 eps.

    In fp64, where a model's logits differ in the fifteenth digit with the batch's composition.
    """
    x, model = images(8, 3, 6, 6).double(), Mixed().double()
    y, ids = predicted(model, x), torch.arange(8)
    attack = short(ATTACKS[name], norm)
    whole = attack(model, x, y, generator(), sample_ids=ids)
    order = torch.randperm(8, generator=generator(1))
    for rows in (*ids.split(4), *ids.split(3), ids[7:], order):
        part = attack(model, x[rows], y[rows], generator(), sample_ids=ids[rows])
        torch.testing.assert_close(part, whole[rows], rtol=0, atol=1e-9)


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
    """AA on a torch.compile model: works, but sys.settrace(None) removes debuggers' tracers."""
    torch.compiler.reset()
    backend, plain = Traced(), Mixed()
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
    torch.testing.assert_close(x_adv, attack(plain, X, Y, generator()), rtol=0, atol=1e-6)


class Basins(nn.Module):
    """Fooled on some islands of a flat sea: a search from a random start finds one or does not."""

    def forward(self, x: Tensor) -> Tensor:
        waves = torch.cos(40 * x.flatten(1)).sum(1)
        return torch.stack((3.5 - waves, waves - 3.5), dim=1)


@pytest.mark.parametrize("name", RESTARTING)
def test_a_later_restart_takes_nothing_away(name: str) -> None:
    """Madry random_restarts: `~corr.byte()` selects every row; the last restart overwrites all."""
    x = images(256, 4) * 0.4 + 0.3
    model = Basins()
    x = x[predicted(model, x) == 0]
    y = torch.zeros(len(x), dtype=torch.int64)
    once, more = (
        predicted(model, attack(model, x, y, generator()))
        for attack in (
            short(ATTACKS[name], "linf", 0.05, restarts=count, n_queries=4) for count in (2, 5)
        )
    )
    assert bool((more >= once).all())
    assert 0 < int(once.sum()) < int(more.sum()) < len(x)
