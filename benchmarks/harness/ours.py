"""What the benchmarks call of roli_fast: the one place that follows its interface.

`passes` are fields of `Engine` (dtype, merge, attention, ...). One that this version does not have
raises `Missing`, and its row says so.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor, nn

from harness.peers import Missing
from harness.plain import EPS, STEP_SIZE
from harness.timing import Call
from roli_fast import peft
from roli_fast.attacks import PGD, Attack
from roli_fast.data import Batch
from roli_fast.engine import Engine, InputGradient, SearchModel
from roli_fast.train.objectives import Adversarial, Objective, Step
from roli_fast.train.optim import Optimizer

Passes = dict[str, Any]
FIELDS = {field.name for field in dataclasses.fields(Engine)}


def engine_of(passes: Passes) -> Engine:
    """The engine with these fields."""
    if unknown := set(passes) - FIELDS:
        raise Missing(f"not in this version: Engine({', '.join(sorted(unknown))}=...)")
    return Engine(**passes)


def bound(model: nn.Module, passes: Passes) -> SearchModel:
    """The model with its engine, taken wherever an attack takes a model."""
    return engine_of(passes).bind(model)


def input_gradient(model: nn.Module, passes: Passes) -> InputGradient:
    """The engine's context manager."""
    return InputGradient(bound(model, passes))


def pgd(model: nn.Module, steps: int, passes: Passes) -> Callable[[Tensor, Tensor], Tensor]:
    """(x, y) -> x_adv."""
    attack, search = linf(steps), bound(model, passes)
    return lambda x, y: attack(search, x, y)


def linf(steps: int) -> PGD:
    """The attack of all candidates."""
    return PGD(eps=EPS, step_size=STEP_SIZE, steps=steps)


def training(
    model: Any,
    x: Tensor,
    y: Tensor,
    method: peft.Method,
    attack: Attack,
    objective: Objective | None = None,
    *,
    passes: Passes,
) -> Call:
    """One update of a stage: its tuning method, attack, objective (plain adversarial training where
    it is None), engine and optimiser."""
    engine, names = engine_of(passes), peft.apply(model, method)
    optimizer = Optimizer(lr=1e-5).build(model, names)
    objective = objective or Adversarial()
    batch = Batch(x, y, torch.arange(len(x), device=x.device))
    generator = Generator(x.device).manual_seed(0)

    def run() -> None:
        method.train_mode(model)
        with engine.training(x.device):
            terms = objective(Step(model, batch, attack, generator, engine))
        optimizer.zero_grad(set_to_none=True)
        terms.loss.backward()
        optimizer.step()

    return run
