"""PGD on a loss of the caller's."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from roli_fast.attacks import PGD
from roli_fast.attacks.base import AttackInputs
from roli_fast.attacks.objective import Goal
from roli_fast.attacks.passes import Passes

Criterion = Callable[[Tensor, Tensor], Tensor]
"""(logits (B, C), y (B,)) -> one loss a sample (B,), or the batch's mean."""


@dataclass(frozen=True, eq=False)
class CriterionPGD(PGD):
    """PGD that ascends `criterion`; one that returns the batch's mean is called image by image."""

    criterion: Criterion | None = None

    def _goal(self, passes: Passes, inputs: AttackInputs) -> Goal:
        goal = super()._goal(passes, inputs)
        if self.criterion is None:
            return goal
        return _CriterionGoal(goal.loss, goal.y, criterion=self.criterion)


@dataclass(frozen=True)
class _CriterionGoal(Goal):
    criterion: Criterion | None = None

    def __call__(self, logits: Tensor, y: Tensor) -> Tensor:
        assert self.criterion is not None
        losses = self.criterion(logits, y)
        if losses.ndim:
            return losses
        if len(y) == 0:  # the mean of nothing
            return logits.sum(1)
        rows = zip(logits.split(1), y.split(1), strict=True)
        return torch.stack([self.criterion(*row) for row in rows])
