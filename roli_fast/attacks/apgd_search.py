"""APGD's loop from one start, and how its steps adapt to each sample's progress.

Linf and L2: Croce & Hein 2020 (arXiv:2003.01690), section 3.2 and Algorithm 1. L1: Croce & Hein
2021 (arXiv:2103.01208), section 4.1.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from roli_fast import ops
from roli_fast.attacks.base import Radius
from roli_fast.attacks.passes import Passes, Samples, column, take
from roli_fast.norms import Norm
from roli_fast.ops.rounding import compute_dtype
from roli_fast.threat import Bounds

MOMENTUM = 0.75
SHRINK = 1.5
"""By which sparse steps divide their length and density."""

Pass = tuple[Tensor, Tensor, Tensor]
"""Gradient (B, ...), loss (B,) and logits (B, C)."""


class Control(Protocol):
    """How one search steps, sample by sample, without a wait for the device: a dataclass whose
    tensors have the batch in front."""

    def advance(
        self, x_adv: Tensor, x_prev: Tensor, grad: Tensor, samples: Samples, first: bool
    ) -> tuple[Tensor, Tensor]:
        """The next iterate and the one before; the memory of both may be that of the arguments."""
        ...

    def observe(
        self, step: int, loss: Tensor, best_x: Tensor, best_loss: Tensor, samples: Samples
    ) -> Tensor | None:
        """Take note of the loss (B,) after this step, and adapt the steps where it is time to.

        Returns:
            Which samples (B,) go on from their best iterate; None where it is not time.
        """
        ...


MakeControl = Callable[[Samples, Tensor, Tensor], Control]
"""(samples, their start, its loss (B,)) -> the control before the first step."""


@dataclass(frozen=True)
class SearchResult:
    """A loop's result for each of its samples; written while it runs.

    Args:
        x_adv: the first iterate that reached the goal where `collect` and `fooled`, else the
            iterate of highest loss.
        fooled: bool (B,), who reached the goal at any iterate.
        loss: highest loss of any iterate, (B,), fp64; -inf where a sample left.
    """

    x_adv: Tensor
    fooled: Tensor
    loss: Tensor


@dataclass
class SearchState:
    """The samples that are still in the batch, and the `place` (B,) of each among all."""

    samples: Samples
    place: Tensor
    x_adv: Tensor
    x_prev: Tensor
    grad: Tensor
    loss: Tensor
    best_x: Tensor
    best_grad: Tensor
    best_loss: Tensor
    control: Control


def climb(  # noqa: PLR0913 - a loop's settings
    passes: Passes,
    samples: Samples,
    start: Tensor,
    make_control: MakeControl,
    *,
    steps: int,
    collect: bool = False,
    compact: bool = False,
    first: Pass | None = None,
) -> SearchResult:
    """n steps from `start`: n + 1 forwards and n input-backwards, one each less with `first`.

    With `compact` a step waits once for the device to learn who is left, without it never.

    Args:
        passes: the model.
        samples: what is searched.
        start: first iterates, in ball and box; this memory is used up.
        make_control: how it steps.
        steps: number of steps, at least 1.
        collect: keep each sample's first iterate that reaches the goal.
        compact: with `collect`, samples leave the batch with it; not with several norms.
        first: the pass on `start`, where it was made already; its memory is used up.
    """
    grad, loss, logits = first or passes.gradient(start, samples.goal)
    found = SearchResult(
        x_adv=start.clone(),
        fooled=torch.zeros(len(start), dtype=torch.bool, device=start.device),
        loss=torch.full((len(start),), -torch.inf, dtype=torch.float64, device=start.device),
    )
    state = SearchState(
        samples=samples,
        place=torch.arange(len(start), device=start.device),
        x_adv=start,
        x_prev=torch.empty_like(start),  # not looked at in the first step
        grad=grad,
        loss=loss,
        best_x=start.clone(),
        best_grad=grad.clone(),
        best_loss=loss.clone(),
        control=make_control(samples, start, loss),
    )
    state = _note_fooled(state, logits, found, collect, compact)
    for step in range(1, steps + 1):
        if len(state.samples) == 0:
            return found
        state.x_adv, state.x_prev = state.control.advance(
            state.x_adv, state.x_prev, state.grad, state.samples, step == 1
        )
        goal = state.samples.goal
        if step < steps:
            state.grad, state.loss, logits = passes.gradient(state.x_adv, goal)
        else:  # nothing comes after it
            state.loss, logits = passes.evaluate(state.x_adv, goal)
        state = _note_fooled(state, logits, found, collect, compact)
        if len(state.samples):
            _keep_best(state, step)
    best = state.best_x
    if collect:
        best = torch.where(column(found.fooled[state.place], best), found.x_adv[state.place], best)
    found.x_adv[state.place] = best
    found.loss[state.place] = state.best_loss.double()
    return found


def _note_fooled(
    state: SearchState, logits: Tensor, found: SearchResult, collect: bool, compact: bool
) -> SearchState:
    """Write down who reached the goal just now; with `compact` they leave."""
    reached = state.samples.goal.reached(logits)
    if not (collect and compact):
        if collect:
            new = column(reached & ~found.fooled, state.x_adv)
            found.x_adv.copy_(torch.where(new, state.x_adv, found.x_adv))
        found.fooled.logical_or_(reached)
        return state
    gone = reached.nonzero()[:, 0]
    if len(gone) == 0:
        return state
    place = state.place[gone]
    found.x_adv[place] = state.x_adv[gone]
    found.fooled[place] = True
    return take(state, (~reached).nonzero()[:, 0])


def _keep_best(state: SearchState, step: int) -> None:
    """Keep the best iterate; where it is time to look back, adapt and go on from the best."""
    best = state.best_x, state.best_grad, state.best_loss
    ops.select_best_(*best, state.x_adv, state.grad, state.loss)
    back = state.control.observe(step, state.loss, state.best_x, state.best_loss, state.samples)
    if back is not None:
        number = back.to(state.loss.dtype)  # 1 beats 1/2: a copy of these rows in one pass
        half = torch.full_like(number, 0.5)
        ops.select_best_(state.x_adv, state.grad, half, state.best_x, state.best_grad, number)


def control_for(
    norm: Norm, bounds: Bounds, steps: int, *, rho: float, density: float | None
) -> MakeControl:
    """How APGD steps in `norm`: by `Sparsity` where its steps move few entries, else by `Halving`.

    Args:
        norm: that of the ball.
        bounds: lowest and highest valid pixel.
        steps: of the loop.
        rho: see `Halving`.
        density: see `Sparsity`.
    """

    def make(samples: Samples, start: Tensor, loss: Tensor) -> Control:
        if norm.sparse:
            looks = sparse_checkpoints(steps)
            return Sparsity.begin(norm, bounds, looks, density, samples, start)
        return Halving.begin(norm, bounds, checkpoints(steps), rho, samples, loss)

    return make


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
class Halving:
    """Steps with momentum, of 2 eps at first, halved where they no longer help.

    Args:
        norm: its `apgd_step_` steps.
        bounds: lowest and highest valid pixel.
        looks: see `checkpoints`.
        rho: a step is halved unless more than this part of the last steps raised the loss.
        step_size: (B,).
        increases: how many of the steps since the last look raised the loss, (B,).
        loss: of the last iterate, (B,). The first is compared with 0, as in the authors' code,
            not with the start's.
        best_before: highest loss at the last look, (B,).
        halved: whether the step was halved at the last look, (B,).
    """

    norm: Norm
    bounds: Bounds
    looks: Mapping[int, int]
    rho: float
    step_size: Tensor
    increases: Tensor
    loss: Tensor
    best_before: Tensor
    halved: Tensor

    @staticmethod
    def begin(
        norm: Norm,
        bounds: Bounds,
        looks: Mapping[int, int],
        rho: float,
        samples: Samples,
        loss: Tensor,
    ) -> "Halving":
        """The state before the first step from a start of this loss (B,)."""
        return Halving(
            norm=norm,
            bounds=bounds,
            looks=looks,
            rho=rho,
            step_size=2 * radii(samples),
            increases=torch.zeros_like(loss),
            loss=torch.zeros_like(loss),
            best_before=loss.clone(),
            halved=torch.ones_like(loss, dtype=torch.bool),
        )

    def advance(
        self, x_adv: Tensor, x_prev: Tensor, grad: Tensor, samples: Samples, first: bool
    ) -> tuple[Tensor, Tensor]:
        """One step with momentum; the new iterate takes the memory of `x_prev`."""
        new = self.norm.apgd_step_(
            x_adv,
            x_prev,
            grad,
            samples.x,
            eps=samples.eps,
            step_size=self.step_size,
            momentum=1.0 if first else MOMENTUM,
            bounds=self.bounds,
        )
        return new, x_adv

    def observe(
        self, step: int, loss: Tensor, best_x: Tensor, best_loss: Tensor, samples: Samples
    ) -> Tensor | None:
        """Halve where too few steps helped, or where the best has not moved since a step kept."""
        self.increases = self.increases + (loss > self.loss)
        self.loss = loss
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
    """Sparse steps of eps at first, whose length and density follow the best point's sparsity.

    Args:
        norm: its `sparse_step_` steps.
        bounds: lowest and highest valid pixel.
        looks: see `sparse_checkpoints`.
        largest: eps of each sample, (B,): the longest step. The shortest is a tenth of it.
        step_size: (B,).
        density: which part of the entries a step moves, (B,).
        changed: how many entries the best point had changed at the last look, (B,).
    """

    norm: Norm
    bounds: Bounds
    looks: Mapping[int, int]
    largest: Tensor
    step_size: Tensor
    density: Tensor
    changed: Tensor

    @staticmethod
    def begin(
        norm: Norm,
        bounds: Bounds,
        looks: Mapping[int, int],
        density: float | None,
        samples: Samples,
        start: Tensor,
    ) -> "Sparsity":
        """The state before the first step, of this density; None is that of the start."""
        largest, entries = radii(samples), samples.x.shape[1:].numel()
        if density is None:
            changed = entries_changed(start, samples.x, largest.dtype)
            densities = changed / entries / SHRINK
        else:
            changed = torch.full_like(largest, entries)
            densities = torch.full_like(largest, density)
        return Sparsity(norm, bounds, looks, largest, largest.clone(), densities, changed)

    def advance(
        self, x_adv: Tensor, x_prev: Tensor, grad: Tensor, samples: Samples, first: bool
    ) -> tuple[Tensor, Tensor]:
        """One sparse step, in place: there is no momentum."""
        self.norm.sparse_step_(
            x_adv,
            grad,
            samples.x,
            eps=samples.eps,
            step_size=self.step_size,
            density=self.density,
            bounds=self.bounds,
        )
        return x_adv, x_prev

    def observe(
        self, step: int, loss: Tensor, best_x: Tensor, best_loss: Tensor, samples: Samples
    ) -> Tensor | None:
        """Where the best point got sparser by 5 %, long steps from it again; else shorter ones."""
        if step not in self.looks:
            return None
        now = entries_changed(best_x, samples.x, self.largest.dtype)
        sparser = now / self.changed < 0.95
        self.density = now / samples.x.shape[1:].numel() / SHRINK
        step_size = torch.where(sparser, self.largest, self.step_size / SHRINK)
        self.step_size = torch.maximum(step_size, self.largest / 10)
        self.changed = now
        return sparser


def radii(samples: Samples) -> Tensor:
    """eps as a tensor (B,) in the precision of the ops' arithmetic."""
    x, dtype = samples.x, compute_dtype(samples.x.dtype)
    eps = samples.eps.to(dtype) if isinstance(samples.eps, Tensor) else samples.eps
    return torch.zeros(len(x), dtype=dtype, device=x.device) + eps


def entries_changed(x_adv: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    """How many entries of each sample differ, (B,), as numbers of `dtype`."""
    return (x_adv != x).flatten(1).sum(1).to(dtype)


@dataclass(frozen=True)
class Part:
    """The rows of a batch that step together, as samples of their own, and their control."""

    rows: slice
    samples: Samples
    control: Control


@dataclass(frozen=True)
class SideBySide:
    """The controls of several parts of one batch as one. Nobody may leave the batch."""

    parts: tuple[Part, ...]

    @staticmethod
    def of(parts: Sequence[tuple[MakeControl, Radius]]) -> MakeControl:
        """A batch of m parts of equal size, one after another: m pairs of how a part steps and of
        its eps, a number or one a sample of the part, in place of that of the samples."""

        def make(samples: Samples, start: Tensor, loss: Tensor) -> Control:
            size, found = len(samples) // len(parts), []
            for number, (make_own, eps) in enumerate(parts):
                rows = slice(number * size, (number + 1) * size)
                own = replace(take(samples, rows), eps=eps)
                found.append(Part(rows, own, make_own(own, start[rows], loss[rows])))
            return SideBySide(tuple(found))

        return make

    def advance(
        self, x_adv: Tensor, x_prev: Tensor, grad: Tensor, samples: Samples, first: bool
    ) -> tuple[Tensor, Tensor]:
        """One step of each part; the new iterate takes the memory of `x_prev`."""
        for part in self.parts:
            here, before, rows = x_adv[part.rows], x_prev[part.rows], grad[part.rows]
            new, _ = part.control.advance(here, before, rows, part.samples, first)
            if new is here:  # without momentum it stepped in place
                before.copy_(new)
        return x_prev, x_adv

    def observe(
        self, step: int, loss: Tensor, best_x: Tensor, best_loss: Tensor, samples: Samples
    ) -> Tensor | None:
        """Each part where it is its time; the rest goes on where it is."""
        found = [
            part.control.observe(
                step, loss[part.rows], best_x[part.rows], best_loss[part.rows], part.samples
            )
            for part in self.parts
        ]
        if all(back is None for back in found):
            return None
        pairs = zip(found, self.parts, strict=True)
        none = torch.zeros_like(best_loss, dtype=torch.bool)
        return torch.cat([none[part.rows] if back is None else back for back, part in pairs])
