"""APGD's loop from one start, and how its steps adapt to each sample's progress.

Linf and L2: Croce & Hein 2020 (arXiv:2003.01690), section 3.2 and Algorithm 1. L1: Croce & Hein
2021 (arXiv:2103.01208), section 4.1.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from roli_fast import ops
from roli_fast.attacks.base import Ball
from roli_fast.attacks.passes import Passes, Samples, column, take
from roli_fast.attacks.restarts import SearchResult
from roli_fast.ops.rounding import compute_dtype

MOMENTUM = 0.75
SHRINK = 1.5
"""By which sparse steps divide their length and density."""


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
    """The same for sparse steps: every 4 % of the steps."""
    period = max(int(0.04 * steps), 1)
    return dict.fromkeys(range(period, steps + 1, period), period)


@dataclass
class Search:
    """The samples that are still in one search, and where each of them stands. Every tensor has
    the batch in front; nothing here waits for the device.

    Args:
        ball: its norm steps; the radii are those of the samples.
        looks: see `checkpoints`.
        samples: what is searched.
        place: the place (B,) of each sample among those that the search began with.
        x_adv: the iterates.
        x_prev: those before; not looked at in the first step.
        grad: the gradient at `x_adv`.
        loss: the loss (B,) at `x_adv`.
        best_x: the iterates of highest loss.
        best_grad: the gradient there.
        best_loss: the loss there.
        step_size: (B,).
    """

    ball: Ball
    looks: Mapping[int, int]
    samples: Samples
    place: Tensor
    x_adv: Tensor
    x_prev: Tensor
    grad: Tensor
    loss: Tensor
    best_x: Tensor
    best_grad: Tensor
    best_loss: Tensor
    step_size: Tensor

    def move(self, step: int) -> Tensor:
        """Go to the next iterate, number `step`, and return it."""
        raise NotImplementedError

    def look_back(self, step: int) -> Tensor | None:
        """Take note of the loss after this step, and adapt the steps where it is time to.

        Returns:
            Which samples (B,) go on from their best iterate; None where it is not time.
        """
        raise NotImplementedError

    def adapt(self, step: int) -> None:
        """Keep the best iterate, whose loss and gradient are known, and `look_back`."""
        best = self.best_x, self.best_grad, self.best_loss
        ops.select_best_(*best, self.x_adv, self.grad, self.loss)
        back = self.look_back(step)
        if back is not None:
            number = back.to(self.loss.dtype)  # 1 beats 1/2: a copy of these rows in one pass
            half = torch.full_like(number, 0.5)
            ops.select_best_(self.x_adv, self.grad, half, self.best_x, self.best_grad, number)


@dataclass
class Halving(Search):
    """Steps with momentum, of 2 eps at first, halved where they no longer help.

    Args:
        rho: a step is halved unless more than this part of the last steps raised the loss.
        last_loss: that of the iterate before, (B,). The first is compared with 0, as in the
            authors' code, not with the start's.
        increases: how many of the steps since the last look raised the loss, (B,).
        best_before: highest loss at the last look, (B,).
        halved: whether the step was halved at the last look, (B,).
    """

    rho: float
    last_loss: Tensor
    increases: Tensor
    best_before: Tensor
    halved: Tensor

    def move(self, step: int) -> Tensor:
        new = self.ball.norm.apgd_step_(
            self.x_adv,
            self.x_prev,
            self.grad,
            self.samples.x,
            eps=self.samples.eps,
            step_size=self.step_size,
            momentum=1.0 if step == 1 else MOMENTUM,
            bounds=self.ball.bounds,
        )
        self.x_prev, self.x_adv = self.x_adv, new  # `new` took the memory of `x_prev`
        return new

    def look_back(self, step: int) -> Tensor | None:
        """Halve where too few steps helped, or where the best has not moved since a step kept."""
        self.increases = self.increases + (self.loss > self.last_loss)
        self.last_loss = self.loss
        if step not in self.looks:
            return None
        few = self.increases <= self.looks[step] * self.rho
        stuck = ~self.halved & (self.best_before >= self.best_loss)
        self.halved = few | stuck
        self.best_before = self.best_loss.clone()
        self.step_size = torch.where(self.halved, self.step_size / 2, self.step_size)
        self.increases = torch.zeros_like(self.increases)
        return self.halved


@dataclass
class Sparsity(Search):
    """Sparse steps of eps at first, whose length and density follow the best point's sparsity.

    Args:
        longest: eps of each sample, (B,), the longest step. The shortest is a tenth of it.
        density: which part of the entries a step moves, (B,).
        changed: how many entries the best point had changed at the last look, (B,).
    """

    longest: Tensor
    density: Tensor
    changed: Tensor

    def move(self, step: int) -> Tensor:
        """In place: there is no momentum."""
        return self.ball.norm.sparse_step_(
            self.x_adv,
            self.grad,
            self.samples.x,
            eps=self.samples.eps,
            step_size=self.step_size,
            density=self.density,
            bounds=self.ball.bounds,
        )

    def look_back(self, step: int) -> Tensor | None:
        """Where the best point got sparser by 5 %, long steps from it again; else shorter ones."""
        if step not in self.looks:
            return None
        now = entries_changed(self.best_x, self.samples.x).to(self.longest.dtype)
        sparser = now / self.changed < 0.95
        self.density = now / self.samples.x.shape[1:].numel() / SHRINK
        step_size = torch.where(sparser, self.longest, self.step_size / SHRINK)
        self.step_size = torch.maximum(step_size, self.longest / 10)
        self.changed = now
        return sparser


def begin(  # noqa: PLR0913 - a search's settings
    ball: Ball,
    samples: Samples,
    start: Tensor,
    grad: Tensor,
    loss: Tensor,
    *,
    steps: int,
    rho: float,
    density: float | None,
) -> Search:
    """A search before its first step: by `Sparsity` in norms whose steps move few entries, else by
    `Halving`.

    Args:
        ball: norm and bounds.
        samples: what is searched, within their eps.
        start: first iterates, in ball and box; this memory is used up, as is the next.
        grad: the gradient at `start`.
        loss: the loss (B,) at `start`.
        steps: how many there will be.
        rho: see `Halving`.
        density: of the first sparse steps; None is that of the start.
    """
    x, dtype = samples.x, compute_dtype(samples.x.dtype)
    eps = samples.eps.to(dtype) if isinstance(samples.eps, Tensor) else samples.eps
    radii = torch.zeros(len(x), dtype=dtype, device=x.device) + eps
    common: dict[str, Any] = dict(
        ball=ball,
        samples=samples,
        place=torch.arange(len(x), device=x.device),
        x_adv=start,
        x_prev=torch.empty_like(start),
        grad=grad,
        loss=loss,
        best_x=start.clone(),
        best_grad=grad.clone(),
        best_loss=loss.clone(),
    )
    if not ball.norm.sparse:
        return Halving(
            **common,
            looks=checkpoints(steps),
            step_size=2 * radii,
            rho=rho,
            last_loss=torch.zeros_like(loss),
            increases=torch.zeros_like(loss),
            best_before=loss.clone(),
            halved=torch.ones_like(loss, dtype=torch.bool),
        )
    changed = torch.full_like(radii, x.shape[1:].numel())
    densities = torch.full_like(radii, density or 0.0)
    if density is None:
        changed = entries_changed(start, x).to(dtype)
        densities = changed / x.shape[1:].numel() / SHRINK
    return Sparsity(
        **common,
        looks=sparse_checkpoints(steps),
        step_size=radii.clone(),
        longest=radii,
        density=densities,
        changed=changed,
    )


def entries_changed(x_adv: Tensor, x: Tensor) -> Tensor:
    """How many entries of each sample differ, (B,)."""
    return (x_adv != x).flatten(1).sum(1)


def climb(  # noqa: PLR0913 - a loop's settings
    passes: Passes,
    ball: Ball,
    samples: Samples,
    start: Tensor,
    *,
    steps: int,
    rho: float,
    density: float | None,
    collect: bool,
    compact: bool,
) -> SearchResult:
    """Return what n steps from `start` find: n + 1 forwards and n input-backwards.

    With `compact` a step waits once for the device to learn who is left, without it never.

    Args:
        passes: the model.
        ball: as the following ones, see `begin`.
        samples: what is searched.
        start: first iterates.
        steps: at least 1.
        rho: see `Halving`.
        density: see `begin`.
        collect: keep each sample's first iterate that reaches the goal, not the one of highest
            loss.
        compact: with `collect`, samples leave the batch with it; their loss is then -inf.
    """
    grad, loss, logits = passes.gradient(start, samples.goal)
    found = SearchResult(
        x_adv=start.clone(),
        fooled=torch.zeros(len(start), dtype=torch.bool, device=start.device),
        loss=torch.full((len(start),), -torch.inf, dtype=torch.float64, device=start.device),
    )
    settings: dict[str, Any] = dict(steps=steps, rho=rho, density=density)
    search = begin(ball, samples, start, grad, loss, **settings)
    search = _note_fooled(search, logits, found, collect, compact)
    for step in range(1, steps + 1):
        if len(search.samples) == 0:
            return found
        x_adv, goal = search.move(step), search.samples.goal
        if step < steps:
            search.grad, search.loss, logits = passes.gradient(x_adv, goal)
        else:  # nothing comes after it
            search.loss, logits = passes.evaluate(x_adv, goal)
        search = _note_fooled(search, logits, found, collect, compact)
        if len(search.samples):
            search.adapt(step)
    best, place = search.best_x, search.place
    if collect:
        best = torch.where(column(found.fooled[place], best), found.x_adv[place], best)
    found.x_adv[place] = best
    found.loss[place] = search.best_loss.double()
    return found


def _note_fooled(
    search: Search, logits: Tensor, found: SearchResult, collect: bool, compact: bool
) -> Search:
    """Write down who reached the goal just now; with `compact` they leave."""
    reached = search.samples.goal.reached(logits)
    if not (collect and compact):
        if collect:
            new = column(reached & ~found.fooled, search.x_adv)
            found.x_adv.copy_(torch.where(new, search.x_adv, found.x_adv))
        found.fooled.logical_or_(reached)
        return search
    gone = reached.nonzero()[:, 0]
    if len(gone) == 0:
        return search
    place = search.place[gone]
    found.x_adv[place] = search.x_adv[gone]
    found.fooled[place] = True
    return take(search, (~reached).nonzero()[:, 0])
