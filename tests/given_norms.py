"""Attacks in several norms: one whose results are given, and the passes that a real one makes."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from roli_fast.attacks import MultiAPGD
from roli_fast.attacks.restarts import highest_loss
from roli_fast.attacks.several_norms import MultiResult, NormFound
from roli_fast.data import Batch
from roli_fast.engine import Cost, Engine
from roli_fast.train.objectives import Objective, Step, Terms

REAL = MultiAPGD(norms=("linf", "l2", "l1"), eps=(8 / 255, 0.5, 4.0), steps=10)
"""On tiny images."""


@dataclass(frozen=True)
class Given(MultiAPGD):
    """A search in several norms that was made before.

    Args:
        results: norm -> what it finds, whatever the images.
    """

    results: dict[str, NormFound] = field(default_factory=dict)

    def search(self, inputs: Any) -> MultiResult:
        """The results of the norms that are left."""
        found = {norm: self.results[norm] for norm in self.norms or ()}
        worst = highest_loss((own.x_adv, own.loss) for own in found.values())
        return MultiResult(worst, Cost(0, 0), found=found)


def given(**results: NormFound) -> Given:
    """A search with these results."""
    norms = tuple(results)
    return Given(norms=norms, eps=(0.1,) * len(norms), results=results)


def result(x_adv: Tensor, loss: list[float], robust: list[bool] | None = None) -> NormFound:
    """One norm's result."""
    flags = [False] * len(loss) if robust is None else robust
    return NormFound(x_adv, torch.tensor(loss, dtype=torch.float64), torch.tensor(flags))


def trained_on(
    objective: Objective,
    model: nn.Module,
    batch: Batch,
    attack: Any,
    engine: Engine | None = None,
    **given: Any,
) -> Terms:
    """The loss of one batch as the loop has it computed, of an objective that is settled on linf
    and l1 where it is to be; `given` are further fields of the step."""
    engine = engine or Engine()
    if objective.needs_accuracies:
        objective = objective.settled({"linf": 0.5, "l2": 0.6, "l1": 0.1})
    counts = torch.zeros(objective.counters, dtype=torch.float64)
    given = {"counts": counts, "accuracy": 0.25} | given
    with engine.training(batch.x.device):
        source = torch.Generator().manual_seed(0)
        return objective(Step(model, batch, attack, source, engine, **given))


class Passes(nn.Module):
    """Counts the images in a model's forwards, in the backwards to its input, and in the forwards
    that a backward to the weights will follow."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.forwards = self.to_input = self.to_weights = 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += len(x)
        if x.requires_grad:
            x = x.clone()
            x.register_hook(self._count)
        elif torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters()):
            self.to_weights += len(x)
        return self.inner(x)

    def _count(self, grad: Tensor) -> None:
        self.to_input += len(grad)

    def each(self, count: int) -> tuple[float, float, float]:
        """(forwards, backwards to the input, backwards to the weights), each of `count` images."""
        return self.forwards / count, self.to_input / count, self.to_weights / count


class WithBN(nn.Module):
    """(B, 3, 8, 8) -> (B, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.mix = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3)
        self.head = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mix(self.norm(self.conv(x)).relu()).mean((2, 3)))
