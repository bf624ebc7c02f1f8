"""APGD's loop from one start: gradients, steps, the best iterate, and samples that leave."""

from dataclasses import dataclass

import torch
from torch import Tensor

from roli_fast import ops
from roli_fast.attacks.apgd_schedule import Control
from roli_fast.attacks.apgd_stepping import Stepping
from roli_fast.attacks.passes import Passes, Samples, take
from roli_fast.threat import Bounds

Pass = tuple[Tensor, Tensor, Tensor]
"""Gradient (B, ...), loss (B,) and logits (B, C)."""


@dataclass(frozen=True)
class Plan:
    """What one loop does.

    Args:
        stepping: in which norm or norms, and by which rule.
        bounds: lowest and highest valid pixel.
        steps: number of steps, at least 1.
        collect: keep each sample's first iterate that reaches the goal.
        compact: samples leave the batch with it; not with several norms.
        watch: without `collect`: note who reached the goal at any iterate.
    """

    stepping: Stepping
    bounds: Bounds
    steps: int
    collect: bool
    compact: bool
    watch: bool = False


@dataclass(frozen=True)
class Found:
    """A loop's result for each of its samples; written while it runs.

    Args:
        x_adv: the first iterate that reached the goal where `collect` and `fooled`, else the
            iterate of highest loss.
        fooled: bool (B,), who reached the goal at any iterate, where `collect` or `watch`.
        loss: highest loss of any iterate, (B,), fp64; -inf where a sample left.
    """

    x_adv: Tensor
    fooled: Tensor
    loss: Tensor


@dataclass
class Search:
    """The samples that are still in the batch, and where each stands among all (`place`)."""

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


def climb(
    passes: Passes, samples: Samples, start: Tensor, plan: Plan, first: Pass | None = None
) -> Found:
    """n steps from `start`: n + 1 forwards and n input-backwards, one each less with `first`.

    With `compact` a step waits once for the device to learn who is left, without it never.

    Args:
        passes: the model.
        samples: what is searched.
        start: first iterates, in ball and box; this memory is used up.
        plan: how.
        first: the pass on `start`, where it was made already; its memory is used up.
    """
    found = _empty(start)
    search, logits = _begin(samples, start, plan, first or passes.gradient(start, samples.goal))
    search = _collect(search, logits, found, plan)
    for step in range(1, plan.steps + 1):
        if len(search.samples) == 0:
            return found
        search.x_adv, search.x_prev = search.control.advance(
            search.x_adv, search.x_prev, search.grad, search.samples, plan.bounds, step == 1
        )
        goal = search.samples.goal
        if step < plan.steps:
            search.grad, search.loss, logits = passes.gradient(search.x_adv, goal)
        else:  # nothing comes after it
            search.loss, logits = passes.evaluate(search.x_adv, goal)
        search = _collect(search, logits, found, plan)
        if len(search.samples):
            _improve(search, step)
    _finish(search, found, plan)
    return found


def _empty(start: Tensor) -> Found:
    count, device = len(start), start.device
    return Found(
        x_adv=start.clone(),
        fooled=torch.zeros(count, dtype=torch.bool, device=device),
        loss=torch.full((count,), -torch.inf, dtype=torch.float64, device=device),
    )


def _begin(samples: Samples, start: Tensor, plan: Plan, first: Pass) -> tuple[Search, Tensor]:
    grad, loss, logits = first
    search = Search(
        samples=samples,
        place=torch.arange(len(start), device=start.device),
        x_adv=start,
        x_prev=torch.empty_like(start),  # not looked at in the first step
        grad=grad,
        loss=loss,
        best_x=start.clone(),
        best_grad=grad.clone(),
        best_loss=loss.clone(),
        control=plan.stepping.control(samples, start, loss, plan.steps),
    )
    return search, logits


def _collect(search: Search, logits: Tensor, found: Found, plan: Plan) -> Search:
    """Write down who reached the goal just now; with `compact` they leave."""
    if not (plan.collect or plan.watch):
        return search
    reached = search.samples.goal.reached(logits)
    if not plan.collect:
        found.fooled.logical_or_(reached)
        return search
    if not plan.compact:
        new = reached & ~found.fooled
        _copy_rows(found.x_adv, search.x_adv, new)
        found.fooled.logical_or_(reached)
        return search
    gone = reached.nonzero()[:, 0]
    if len(gone) == 0:
        return search
    place = search.place[gone]
    found.x_adv[place] = search.x_adv[gone]
    found.fooled[place] = True
    return take(search, (~reached).nonzero()[:, 0])


def _improve(search: Search, step: int) -> None:
    """Keep the best iterate; where it is time to look back, adapt and go on from the best."""
    best = search.best_x, search.best_grad, search.best_loss
    ops.select_best_(*best, search.x_adv, search.grad, search.loss)
    search.control.observe(search.loss)
    back = search.control.look_back(step, search.best_x, search.best_loss, search.samples.x)
    if back is not None:
        number = back.to(search.loss.dtype)  # 1 beats 1/2: a copy of these rows in one pass
        half = torch.full_like(number, 0.5)
        ops.select_best_(search.x_adv, search.grad, half, search.best_x, search.best_grad, number)


def _copy_rows(into: Tensor, source: Tensor, rows: Tensor) -> None:
    mask = rows.view(-1, *[1] * (into.ndim - 1))
    into.copy_(torch.where(mask, source, into))


def _finish(search: Search, found: Found, plan: Plan) -> None:
    """The others' result is their best iterate."""
    left, best = search.place, search.best_x
    if plan.collect:
        mask = found.fooled[left].view(-1, *[1] * (best.ndim - 1))
        best = torch.where(mask, found.x_adv[left], best)
    found.x_adv[left] = best
    found.loss[left] = search.best_loss.double()
