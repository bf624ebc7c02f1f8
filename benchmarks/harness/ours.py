"""What the benchmarks call of roli_fast: the one place that follows its interface.

`passes` are the fields of `Engine` (dtype, merge, attention, ...). What this version does not have
raises `Missing`, and its row says so.
"""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor, nn

from harness.peers import Missing
from harness.plain import EPS, STEP_SIZE
from harness.timing import Call
from roli_fast import engine, peft
from roli_fast.attacks import PGD
from roli_fast.data import Batch
from roli_fast.engine import InputGradient, SearchModel
from roli_fast.train.objectives import Adversarial
from roli_fast.train.optim import Optimizer

Passes = dict[str, Any]


def bound(model: nn.Module, passes: Passes) -> SearchModel:
    """The model with its engine, taken wherever an attack takes a model."""
    kind = getattr(engine, "Engine", None)
    known = {field.name for field in dataclasses.fields(kind)} if kind else {"dtype"}
    if unknown := set(passes) - known:
        raise Missing(f"not in this version: Engine({', '.join(sorted(unknown))}=...)")
    return kind(**passes).bind(model) if kind else SearchModel(model, **passes)


def input_gradient(model: nn.Module, passes: Passes) -> InputGradient:
    """The engine's context manager."""
    if not hasattr(engine, "Engine"):
        return InputGradient(model, **passes)
    return InputGradient(bound(model, passes))


def pgd(model: nn.Module, steps: int, passes: Passes) -> Callable[..., Tensor]:
    """(x, y, generator=None, sample_ids=None) -> x_adv."""
    attack = PGD(eps=EPS, step_size=STEP_SIZE, steps=steps)
    search = bound(model, passes)
    return lambda x, y, *args, **named: attack(search, x, y, *args, **named)


def training(
    model: Any, x: Tensor, y: Tensor, method: peft.Method, *, steps: int, passes: Passes
) -> Call:
    """One update of a stage: its tuning method, objective, attack and optimiser.

    Attack and forward take the dtype of `passes`; weights, losses and the update are fp32.
    """
    if kind := getattr(engine, "Engine", None):
        return _stage(model, x, y, method, steps=steps, own=kind(**passes))
    names = peft.apply(model, method)
    optimizer = Optimizer(lr=1e-5).build(model, names)
    search: Any = pgd(model, steps, passes)  # the objective calls it as an attack
    dtype = passes.get("dtype", torch.float32)
    batch = Batch(x, y, torch.arange(len(x), device=x.device))
    generator = Generator(x.device).manual_seed(0)
    objective = Adversarial()

    def attack(_model: nn.Module, *args: Any, **named: Any) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return search(*args, **named)

    def run() -> None:
        method.train_mode(model)
        short = (
            contextlib.nullcontext()
            if dtype == torch.float32
            else torch.autocast(x.device.type, dtype)
        )
        with short:
            terms = objective(model, batch, attack, generator)  # type: ignore[arg-type]
        optimizer.zero_grad(set_to_none=True)
        terms.loss.backward()
        optimizer.step()

    return run


def _stage(model: Any, x: Tensor, y: Tensor, method: peft.Method, *, steps: int, own: Any) -> Call:
    names = peft.apply(model, method)
    optimizer = Optimizer(lr=1e-5).build(model, names)
    attack = PGD(eps=EPS, step_size=STEP_SIZE, steps=steps)
    batch = Batch(x, y, torch.arange(len(x), device=x.device))
    generator = Generator(x.device).manual_seed(0)
    objective: Any = Adversarial()

    def run() -> None:
        method.train_mode(model)
        with own.training(x.device):
            terms = objective(model, batch, attack, generator, own)
        optimizer.zero_grad(set_to_none=True)
        terms.loss.backward()
        optimizer.step()

    return run
