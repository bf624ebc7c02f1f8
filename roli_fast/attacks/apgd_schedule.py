"""When APGD looks back, and how it changes its steps then: sample by sample, without a host sync.

Linf and L2: Croce & Hein 2020 (arXiv:2003.01690), section 3.2 and Algorithm 1. L1: Croce & Hein
2021 (arXiv:2103.01208), section 4.1.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from roli_fast.attacks.base import Radius
from roli_fast.attacks.passes import Samples
from roli_fast.norms import Norm
from roli_fast.threat import Bounds

MOMENTUM = 0.75
SHRINK = 1.5
"""By which L1 divides steps and densities."""


def checkpoints(steps: int) -> dict[int, int]:
    """Step after which to look back -> number of steps since the last look.

    The first look comes after 22 % of the steps, each period is 3 % of the steps shorter than the
    one before, and none is below 6 %: after 22, 41, 57, 70, 80, 87, 93 and 99 of 100 steps.
    """
    period, shorter, shortest = (max(int(part * steps), 1) for part in (0.22, 0.03, 0.06))
    looks, done = {}, period
    while done <= steps:
        looks[done] = period
        period = max(period - shorter, shortest)
        done += period
    return looks


def sparse_checkpoints(steps: int) -> dict[int, int]:
    """The same for L1: every 4 % of the steps."""
    period = max(int(0.04 * steps), 1)
    return dict.fromkeys(range(period, steps + 1, period), period)


def large_radius_stages(steps: int) -> list[tuple[int, int]]:
    """(multiple of eps, steps): 3 eps and 2 eps for 30 % of the steps each, eps for the rest."""
    first = math.ceil(0.3 * steps)
    return [(3, first), (2, first), (1, steps - 2 * first)]


class Control(Protocol):
    """How one search steps. A dataclass whose tensors have the batch in front."""

    def advance(  # noqa: PLR0913 - what a step is made of
        self,
        x_adv: Tensor,
        x_prev: Tensor,
        grad: Tensor,
        samples: Samples,
        bounds: Bounds,
        first: bool,
    ) -> tuple[Tensor, Tensor]:
        """The next iterate and the one before; the memory of both may be that of the arguments."""
        ...

    def observe(self, loss: Tensor) -> None:
        """Take note of the loss (B,) of the new iterate."""
        ...

    def look_back(self, step: int, best_x: Tensor, best_loss: Tensor, x: Tensor) -> Tensor | None:
        """After this step: adapt the steps where it is time to.

        Returns:
            Which samples (B,) go on from their best iterate; None where it is not time.
        """
        ...


@dataclass
class Halving:
    """Steps with momentum, of 2 eps at first, halved where they no longer help.

    Args:
        step: the norm's `apgd_step_`.
        looks: see `checkpoints`.
        rho: a step is halved unless more than this part of the last steps raised the loss.
        step_size: (B,).
        increases: how many of the steps since the last look raised the loss, (B,).
        loss: of the last iterate, (B,). The first is compared with 0, as in the authors' code,
            not with the start's.
        best_before: highest loss at the last look, (B,).
        halved: whether the step was halved at the last look, (B,).
    """

    step: Callable[..., Tensor]
    looks: Mapping[int, int]
    rho: float
    step_size: Tensor
    increases: Tensor
    loss: Tensor
    best_before: Tensor
    halved: Tensor

    @staticmethod
    def begin(
        norm: Norm, looks: Mapping[int, int], rho: float, samples: Samples, loss: Tensor
    ) -> "Halving":
        """The state before the first step from a start of this loss (B,)."""
        return Halving(
            step=norm.apgd_step_,
            looks=looks,
            rho=rho,
            step_size=2 * per_sample(samples),
            increases=torch.zeros_like(loss),
            loss=torch.zeros_like(loss),
            best_before=loss.clone(),
            halved=torch.ones_like(loss, dtype=torch.bool),
        )

    def advance(  # noqa: PLR0913 - as in the protocol
        self,
        x_adv: Tensor,
        x_prev: Tensor,
        grad: Tensor,
        samples: Samples,
        bounds: Bounds,
        first: bool,
    ) -> tuple[Tensor, Tensor]:
        """One step with momentum; the new iterate takes the memory of `x_prev`."""
        new = self.step(
            x_adv,
            x_prev,
            grad,
            samples.x,
            eps=samples.eps,
            step_size=self.step_size,
            momentum=1.0 if first else MOMENTUM,
            bounds=bounds,
        )
        return new, x_adv

    def observe(self, loss: Tensor) -> None:
        """Count the increases."""
        self.increases = self.increases + (loss > self.loss)
        self.loss = loss

    def look_back(self, step: int, best_x: Tensor, best_loss: Tensor, x: Tensor) -> Tensor | None:
        """Halve where too few steps helped, or where the best has not moved since a step kept."""
        if step not in self.looks:
            return None
        few = self.increases <= self.looks[step] * self.rho
        stuck = ~self.halved & (self.best_before >= best_loss)
        self.halved = few | stuck
        self.best_before = best_loss.clone()
        self.step_size = torch.where(self.halved, self.step_size / 2, self.step_size)
        self.increases = torch.zeros_like(self.increases)
        return self.halved


@dataclass
class Sparsity:
    """Sparse steps of eps at first, in L1; step size and density follow the best point's sparsity.

    Args:
        step: the norm's `sparse_step_`.
        looks: see `sparse_checkpoints`.
        largest: eps of each sample, (B,): the longest step. The shortest is a tenth of it.
        step_size: (B,).
        density: which part of the entries a step moves, (B,).
        changed: how many entries the best point had changed at the last look, (B,).
    """

    step: Callable[..., Tensor]
    looks: Mapping[int, int]
    largest: Tensor
    step_size: Tensor
    density: Tensor
    changed: Tensor

    @staticmethod
    def begin(norm: Norm, looks: Mapping[int, int], samples: Samples, density: float) -> "Sparsity":
        """The state before the first step, with the same density for all samples."""
        largest = per_sample(samples)
        return Sparsity(
            step=norm.sparse_step_,
            looks=looks,
            largest=largest,
            step_size=largest.clone(),
            density=torch.full_like(largest, density),
            changed=torch.full_like(largest, samples.x.shape[1:].numel()),
        )

    @staticmethod
    def from_start(
        norm: Norm, looks: Mapping[int, int], samples: Samples, start: Tensor
    ) -> "Sparsity":
        """The same, with the density that a start already has."""
        control = Sparsity.begin(norm, looks, samples, 0.0)
        control.changed = entries_changed(start, samples.x, control.largest.dtype)
        control.density = control.changed / samples.x.shape[1:].numel() / SHRINK
        return control

    def advance(  # noqa: PLR0913 - as in the protocol
        self,
        x_adv: Tensor,
        x_prev: Tensor,
        grad: Tensor,
        samples: Samples,
        bounds: Bounds,
        first: bool,
    ) -> tuple[Tensor, Tensor]:
        """One sparse step, in place: there is no momentum."""
        self.step(
            x_adv,
            grad,
            samples.x,
            eps=samples.eps,
            step_size=self.step_size,
            density=self.density,
            bounds=bounds,
        )
        return x_adv, x_prev

    def observe(self, loss: Tensor) -> None:
        """The loss decides nothing here."""

    def look_back(self, step: int, best_x: Tensor, best_loss: Tensor, x: Tensor) -> Tensor | None:
        """Where the best point got sparser by 5 %, long steps from it again; else shorter ones."""
        if step not in self.looks:
            return None
        now = entries_changed(best_x, x, self.largest.dtype)
        sparser = now / self.changed < 0.95
        self.density = now / x.shape[1:].numel() / SHRINK
        step_size = torch.where(sparser, self.largest, self.step_size / SHRINK)
        self.step_size = torch.maximum(step_size, self.largest / 10)
        self.changed = now
        return sparser


def per_sample(samples: Samples) -> Tensor:
    """eps as a tensor (B,) in the precision of the ops' arithmetic."""
    x = samples.x
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return torch.zeros(len(x), dtype=dtype, device=x.device) + as_column(samples.eps, dtype)


def as_column(eps: Radius, dtype: torch.dtype) -> Radius:
    """A radius a sample in `dtype`, a number as it is."""
    return eps.to(dtype) if isinstance(eps, Tensor) else eps


def entries_changed(x_adv: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    """How many entries of each sample differ, (B,), as numbers of `dtype`."""
    return (x_adv != x).flatten(1).sum(1).to(dtype)
