"""FAB, the fast adaptive boundary attack (Croce & Hein, "Minimally distorted adversarial examples
with a fast adaptive boundary attack", ICML 2020, arXiv:1907.02044), and FAB-T, towards one class
after another (Croce & Hein, ICML 2020, arXiv:2003.01690)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from roli_fast.attacks.base import (
    ATTACKS,
    AttackInputs,
    AttackResult,
    Ball,
    BallAttack,
    check_steps,
)
from roli_fast.attacks.objective import Goal, check_target
from roli_fast.attacks.passes import Passes, column, put, take
from roli_fast.attacks.restarts import SearchResult, restart_generators, until_fooled
from roli_fast.engine import InputGradient, KeptForward
from roli_fast.losses import at_least_float32, margin
from roli_fast.norms import NORMS, Norm
from roli_fast.norms.base import check_offers
from roli_fast.ops.rounding import box_limits, per_sample

Starts = Callable[[int, Tensor], Tensor]
"""(number of a run after the first, indices of the samples that are left) -> their starts."""


@dataclass(frozen=True)
class FABResult(AttackResult):
    """What FAB found.

    `distance` (B,), fp64: that of the closest adversarial image met, also where it is beyond eps;
    0 where x itself is classified wrong, inf where none was met.
    """

    distance: Tensor | None = None


@ATTACKS.register("fab")
@dataclass(frozen=True)
class FAB(BallAttack):
    """Looks for the closest adversarial image; eps decides only whether it counts.

    A sample comes back as the closest adversarial image that was met if that is within eps, and
    otherwise as it was. Samples that are classified wrong to begin with are not searched, and what
    has been found within eps takes no part in later restarts.

    Each step linearises the boundaries to all other classes, goes to the nearest one (from the
    point and from x, both without leaving the box; a mixture of the two), a bit beyond, and where
    that fools the model, back towards x. A run of k steps costs k + 1 forwards and (C - 1) k
    backwards, and one forward and C - 1 backwards for each step back: over all samples if most
    of them stepped back, over those that did otherwise. With a `target` in the call only an image
    that is classified as that counts, and the boundary is that to it: one backward.

    Args:
        steps: number of steps of a run.
        restarts: number of runs; the first starts from x, the others from a random point within
            eps / 2 of it.
        alpha_max: largest share of the projection of x in the mixture.
        eta: overshoot, 1.05 is 5 % beyond the boundary.
        beta: a step back leaves this share of the distance.
        final_search: steps of a secant method between x and what was found, at the end of a run, a
            forward each; 0 makes none, as AutoAttack's code.
        minimal: keep on looking for a closer image after one within eps was met. False lets such a
            sample leave the batch: the same samples are fooled, at less cost.
    """

    steps: int = 100
    restarts: int = 1
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9
    final_search: int = 3
    minimal: bool = True

    options = ("eps", "target")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_offers(self.norm, "fab_step_")
        if self.final_search != 0:
            check_steps("final_search", self.final_search)

    @property
    def label(self) -> str:
        """ "fab-100" for a hundred steps; restarts follow."""
        return self._labelled("fab")

    def _labelled(self, name: str) -> str:
        return f"{name}-{self.steps}" + (f"-r{self.restarts}" if self.restarts > 1 else "")

    def planes(self, logits: Tensor, y: Tensor) -> "Iterator[Planes]":
        """The boundaries to attack one after another, from the clean logits (B, C)."""
        if logits.shape[1] > 1:
            yield NearestPlane(NORMS[str(self.norm)], logits.shape[1] - 1)

    def _planes_to(self, goal: Goal, logits: Tensor) -> "Iterator[Planes]":
        return self.planes(logits, goal.y) if goal.target is None else iter([GoalPlane(goal)])

    def starts(self, inputs: AttackInputs, ball: Ball) -> Starts:
        """The source of the later runs' starts, for a subclass that draws otherwise.

        Here they are random points within eps / 2, by the generator, the run and the sample's id.
        """
        sources = restart_generators(inputs.generator, self.restarts, inputs.x.device)

        def drawn(restart: int, left: Tensor) -> Tensor:
            start = ball.norm.random_start(
                inputs.x,
                eps=ball.eps * 0.5,
                bounds=ball.bounds,
                generator=sources[restart],
                sample_ids=inputs.ids,
            )
            return start[left]

        return drawn

    def search(self, inputs: AttackInputs) -> FABResult:
        ball, inputs = self.ball(inputs)
        x, y = inputs.x, inputs.y
        limit = per_sample(ball.eps, x).double().reshape(-1).expand(len(x))
        starts = self.starts(inputs, ball)
        with inputs.gradient(margin) as gradient:
            walk = Walk(self, ball, gradient)
            logits = Passes(gradient).clean(x, y)
            goal = Goal("margin", y, inputs.target)
            if inputs.target is not None:
                check_target(inputs.target, y, logits)
            height, done = goal(logits, y), goal.reached(logits)

            def once(planes: Planes, restart: int, rows: Tensor) -> SearchResult:
                samples = take(Samples(x, y, goal, x, planes, height, limit), rows)
                if restart > 0:
                    samples = replace(samples, point=starts(restart, rows))
                closest = walk.run(samples)
                near = closest.distance <= samples.limit
                return SearchResult(closest.image, near, -closest.distance)

            runs = [
                partial(once, planes, restart)
                for planes in self._planes_to(goal, logits)
                for restart in range(self.restarts)
            ]
            found = until_fooled(x, done, runs)
            distance = torch.where(done, 0.0, -found.loss)
            x_adv = torch.where(column(found.fooled, x), found.x_adv, x)
            return FABResult(x_adv, gradient.cost, found.fooled, ball.notes, distance)


@ATTACKS.register("fab-t")
@dataclass(frozen=True)
class FABT(FAB):
    """FAB that linearises one boundary at a time, so that a step costs one backward and not C - 1.

    The classes of highest clean logits take their turn, likeliest first. Any image that is not
    classified as y counts, whatever its class. What has been found within eps takes no part in the
    runs towards later classes. The other arguments are those of `FAB`.

    Args:
        targets: number of classes to go towards; a model with fewer others has all of them taken.
    """

    targets: int = 9

    options = ("eps",)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_steps("targets", self.targets)

    @property
    def label(self) -> str:
        """ "fab-t-100" for a hundred steps towards each class; restarts follow."""
        return self._labelled("fab-t")

    def planes(self, logits: Tensor, y: Tensor) -> "Iterator[Planes]":
        """Ranks 2, 3, ... of the clean logits; y itself has rank 1 where it is searched at all."""
        ranked = logits.sort(dim=1).indices
        for rank in range(min(self.targets, logits.shape[1] - 1)):
            yield TargetPlane(ranked[:, -2 - rank])


@dataclass(frozen=True)
class Difference:
    """The loss z_other - z_y, whose zeros are the boundary to that class."""

    other: Tensor

    def __call__(self, logits: Tensor, y: Tensor) -> Tensor:
        pair = at_least_float32(logits).gather(1, torch.stack([self.other, y], dim=1))
        return pair[:, 0] - pair[:, 1]

    def rows(self, part: slice) -> "Difference":
        """That of these samples alone."""
        return take(self, part)


@dataclass(frozen=True)
class TargetPlane:
    """The boundary to one class a sample, (B,): FAB-T. One backward."""

    target: Tensor
    backwards: int = 1

    def __call__(self, kept: KeptForward, y: Tensor) -> tuple[Tensor, Tensor]:
        return kept.gradient(Difference(self.target))


@dataclass(frozen=True)
class GoalPlane:
    """The boundary of a goal: between its target and the likeliest other class. One backward."""

    goal: Goal
    backwards: int = 1

    def __call__(self, kept: KeptForward, y: Tensor) -> tuple[Tensor, Tensor]:
        return kept.gradient(self.goal)


@dataclass(frozen=True)
class NearestPlane:
    """The nearest of the boundaries to all other classes: FAB. `backwards` is C - 1.

    One boundary after another is compared with the nearest so far, so that memory holds two
    gradients and not one for each class.
    """

    norm: Norm
    backwards: int

    def __call__(self, kept: KeptForward, y: Tensor) -> tuple[Tensor, Tensor]:
        nearest = normal = value = None
        for rank in range(self.backwards):
            last = rank == self.backwards - 1
            other = rank + (rank >= y).long()
            grad, gap = kept.gradient(Difference(other), last=last)
            away = gap.abs() / (self.norm.dual(grad) + 1e-12)
            if nearest is None or normal is None or value is None:
                nearest, normal, value = away, grad, gap
                continue
            closer = away < nearest
            nearest = torch.where(closer, away, nearest)
            normal = torch.where(column(closer, grad), grad, normal)
            value = torch.where(closer, gap, value)
        assert normal is not None and value is not None
        return normal, value


Planes = TargetPlane | GoalPlane | NearestPlane
"""Which boundary of each sample is linearised: (kept forward, labels) -> normals, like x, and the
values of the linear functions (B,). `backwards` is what one call costs."""


@dataclass(frozen=True)
class Samples:
    """What one run works on; the batch in front of every tensor.

    Args:
        x: images, all classified right.
        y: their labels (B,).
        goal: who is fooled; its margin is above 0 there.
        point: where each search stands.
        planes: which boundaries it goes to.
        clean_margin: the goal's of `x` (B,), below 0.
        limit: radii (B,) in fp64 within which an adversarial image counts.
    """

    x: Tensor
    y: Tensor
    goal: Goal
    point: Tensor
    planes: Planes
    clean_margin: Tensor
    limit: Tensor


@dataclass
class Closest:
    """The closest adversarial images so far, (B, ...); distance inf where there is none.

    `update` writes into these tensors, so that it serves views of some rows too.
    """

    image: Tensor
    distance: Tensor
    margin: Tensor

    def update(self, image: Tensor, distance: Tensor, margin: Tensor, fooled: Tensor) -> None:
        closer = fooled & (distance < self.distance)
        torch.where(column(closer, image), image, self.image, out=self.image)
        torch.where(closer, distance, self.distance, out=self.distance)
        torch.where(closer, margin, self.margin, out=self.margin)


@dataclass(frozen=True)
class Walk:
    """Runs of an attack: from a start, along linearised boundaries, to a close adversarial."""

    attack: FAB
    ball: Ball
    engine: InputGradient

    def run(self, samples: Samples) -> Closest:
        """The closest adversarial image of each sample."""
        whole, steps, minimal = samples, self.attack.steps, self.attack.minimal
        count, device = len(samples.y), samples.x.device
        infinite = torch.full((count,), torch.inf, dtype=torch.float64, device=device)
        total = Closest(samples.x.clone(), infinite, samples.clean_margin.clone())
        here, closest = torch.arange(count, device=device), total
        normal, value = self._planes(samples)
        for step in range(steps):
            samples = replace(samples, point=self._moved(samples, normal, value))
            if step == steps - 1:
                logits = self.engine.evaluate(samples.point, samples.y)[1]
                self._note(samples, logits, closest)
                break
            point, normal, value, stays = self._look(samples, closest)
            samples = replace(samples, point=point)
            if not (minimal or bool(stays.all())):
                stay = stays.nonzero()[:, 0]
                total = put(total, here, closest)
                here, closest = here[stay], take(closest, stay)
                if len(here) == 0:
                    break
                samples, normal, value = take(samples, stay), normal[stay], value[stay]
        return self._refine(whole, put(total, here, closest))

    def _note(self, samples: Samples, logits: Tensor, closest: Closest) -> Tensor:
        """Who is fooled (B,), written down where that is closer."""
        fooled = samples.goal.reached(logits)
        distance = self.ball.norm.distance(samples.point, samples.x)
        closest.update(samples.point, distance, samples.goal(logits, samples.y), fooled)
        return fooled

    def _look(self, samples: Samples, closest: Closest) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The next points, the planes there, and which samples stay.

        Fooled samples step back towards x. The gradients of the others come from the forward that
        shows who is fooled, as long as that saves passes; what needs another forward waits for the
        rest of the pool, so that it fills its batches. Planes of samples that leave are undefined.
        """
        point, normal = torch.empty_like(samples.point), torch.empty_like(samples.point)
        value = torch.empty_like(closest.margin)
        stays, later = torch.empty_like(samples.y, dtype=torch.bool), []
        for part in self.engine.batches(len(samples.y)):
            some, near = take(samples, part), take(closest, part)
            kept = self.engine.keep(some.point, some.y)
            fooled = self._note(some, kept.logits, near)
            back = (some.x + (some.point - some.x) * self.attack.beta).to(point.dtype)
            point[part] = torch.where(column(fooled, back), back, some.point)
            stays[part] = self.attack.minimal or near.distance > some.limit
            moved = fooled & stays[part]
            if int(moved.sum()) * (1 + some.planes.backwards) >= int(stays[part].sum()):
                later.append(stays[part])
            else:
                normal[part], value[part] = some.planes(kept, some.y)
                later.append(moved)
        samples = replace(samples, point=point)
        again = torch.cat(later).nonzero()[:, 0]
        if len(again) == len(samples.y):
            return point, *self._planes(samples), stays
        if len(again):
            fresh = self._planes(take(samples, again))
            for old, new in zip((normal, value), fresh, strict=True):
                old.index_copy_(0, again, new)
        return point, normal, value, stays

    def _moved(self, samples: Samples, normal: Tensor, value: Tensor) -> Tensor:
        """The next points (equation 8 of the paper).

        Batch by batch: where there is no kernel, a step takes the memory of many images for one.
        """
        point = samples.point.clone()
        for part in self.engine.batches(len(samples.y)):
            self.ball.norm.fab_step_(
                point[part],
                normal[part],
                samples.x[part],
                value=value[part],
                alpha_max=self.attack.alpha_max,
                eta=self.attack.eta,
                bounds=self.ball.bounds,
            )
        return point

    def _refine(self, samples: Samples, closest: Closest) -> Closest:
        """The final search: a few steps of a secant method between x and the adversarial image.

        Each lands a tenth of the way beyond the crossing of the secant, on the adversarial side.
        """
        found = torch.isfinite(closest.distance).nonzero()[:, 0]
        if len(found) == 0 or self.attack.final_search == 0:
            return closest
        samples, part = take(samples, found), take(closest, found)
        x, end = samples.x, part.image.clone()  # `update` writes into part.image
        near, far = torch.zeros_like(part.margin), torch.ones_like(part.margin)
        near_margin, far_margin = samples.clean_margin, part.margin.clone()
        box = box_limits(*self.ball.bounds, x.dtype)
        for _ in range(self.attack.final_search):
            crossing = (near_margin / (near_margin - far_margin)).nan_to_num(0.5).clamp(0, 1)
            share = near + (far - near) * (0.9 * crossing + 0.1)
            probe = (x + column(share, x) * (end - x)).to(x.dtype).clamp(*box)
            logits = self.engine.evaluate(probe, samples.y)[1]
            fooled = self._note(replace(samples, point=probe), logits, part)
            height = samples.goal(logits, samples.y)
            near, far = torch.where(fooled, near, share), torch.where(fooled, share, far)
            near_margin = torch.where(fooled, near_margin, height)
            far_margin = torch.where(fooled, height, far_margin)
        return put(closest, found, part)

    def _planes(self, samples: Samples) -> tuple[Tensor, Tensor]:
        """The planes at the samples' points, by new forwards."""
        parts = self.engine.batches(len(samples.y))
        if len(parts) == 1:
            return samples.planes(self.engine.keep(samples.point, samples.y), samples.y)
        normal, value = torch.empty_like(samples.point), torch.empty_like(samples.clean_margin)
        for part in parts:
            some = take(samples, part)
            normal[part], value[part] = some.planes(self.engine.keep(some.point, some.y), some.y)
        return normal, value
