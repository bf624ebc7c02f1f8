"""What the benchmarks call of roli_fast: the one place that follows its interface.

`passes` are the fields of `Engine` (dtype, merge, attention, ...).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor, nn

from harness.plain import EPS, STEP_SIZE
from harness.timing import Call
from roli_fast import peft
from roli_fast.attacks import PGD
from roli_fast.data import Batch
from roli_fast.engine import Engine, InputGradient, SearchModel
from roli_fast.train.objectives import Adversarial
from roli_fast.train.optim import Optimizer

Passes = dict[str, Any]


def bound(model: nn.Module, passes: Passes) -> SearchModel:
    """The model with its engine, taken wherever an attack takes a model."""
    return Engine(**passes).bind(model)


def input_gradient(model: nn.Module, passes: Passes) -> InputGradient:
    """The engine's context manager."""
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
    names = peft.apply(model, method)
    optimizer = Optimizer(lr=1e-5).build(model, names)
    attack = PGD(eps=EPS, step_size=STEP_SIZE, steps=steps)
    batch = Batch(x, y, torch.arange(len(x), device=x.device))
    generator = Generator(x.device).manual_seed(0)
    objective, own = Adversarial(), Engine(**passes)

    def run() -> None:
        method.train_mode(model)
        with own.training(x.device):
            terms = objective(model, batch, attack, generator, own)
        optimizer.zero_grad(set_to_none=True)
        terms.loss.backward()
        optimizer.step()

    return run
