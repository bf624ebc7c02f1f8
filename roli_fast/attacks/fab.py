"""FAB, the fast adaptive boundary attack (Croce & Hein, "Minimally distorted adversarial examples
with a fast adaptive boundary attack", ICML 2020, arXiv:1907.02044)."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Generator, Tensor

from roli_fast.attacks.base import (
    ATTACKS,
    AttackInputs,
    AttackResult,
    Ball,
    BallAttack,
    check_steps,
    restart_generators,
)
from roli_fast.attacks.fab_search import NearestPlane, Planes, Samples, Walk, rows
from roli_fast.attacks.hyperplane import check_norm
from roli_fast.attacks.objective import is_right
from roli_fast.attacks.passes import Passes, take
from roli_fast.errors import ArgumentError, describe
from roli_fast.losses import margin
from roli_fast.ops.rounding import per_sample
from roli_fast.threat import Bounds


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
    of them stepped back, over those that did otherwise.

    Args:
        norm: "linf", "l2" or "l1"; null in a run's configuration takes the run's threat model.
        eps: radius; null takes the norm's usual one (8/255, 0.5, 12 in [0, 1] images), which the
            result then notes, and in a run that of the run's threat model.
        bounds: lowest and highest valid pixel; null takes the run's threat model.
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

    norm: str | None = "linf"
    eps: float | None = None
    bounds: Bounds | None = (0.0, 1.0)
    steps: int = 100
    restarts: int = 1
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9
    final_search: int = 3
    minimal: bool = True

    def __post_init__(self) -> None:
        self.check_ball()
        check_norm(self.norm)
        for name in ("steps", "restarts"):
            check_steps(name, getattr(self, name))
        if self.final_search != 0:
            check_steps("final_search", self.final_search)
        for name, low, high in (("alpha_max", 0, 1), ("eta", 1, 2), ("beta", 0, 1)):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not low <= value <= high:
                raise ArgumentError(describe(name, f"a number in [{low}, {high}]", repr(value)))

    @property
    def label(self) -> str:
        """ "fab-100" for a hundred steps; restarts follow."""
        return self._labelled("fab")

    def _labelled(self, name: str) -> str:
        return f"{name}-{self.steps}" + (f"-r{self.restarts}" if self.restarts > 1 else "")

    def planes(self, logits: Tensor, y: Tensor) -> Iterator[Planes]:
        """The boundaries to attack one after another, from the clean logits (B, C)."""
        if logits.shape[1] > 1:
            yield NearestPlane(str(self.norm), logits.shape[1] - 1)

    def starts(self, ball: Ball, inputs: AttackInputs) -> "Starts":
        """The source of the later runs' starts, for a subclass that draws otherwise."""
        sources = restart_generators(inputs.generator, self.restarts, inputs.x.device)
        return OwnStarts(ball, sources, inputs.ids)

    def search(self, inputs: AttackInputs) -> FABResult:
        ball, inputs = self.ball(inputs)
        x, y = inputs.x, inputs.y
        walk = Walk(
            str(self.norm),
            ball.bounds,
            self.steps,
            self.alpha_max,
            self.eta,
            self.beta,
            self.final_search,
            self.minimal,
        )
        limit = per_sample(ball.eps, x).double().reshape(-1).expand(len(x))
        starts = self.starts(ball, inputs)
        with inputs.gradient(margin) as gradient:
            logits = Passes(gradient).clean(x, y)
            clean_margin = margin(logits, y)
            x_adv = x.clone()
            distance = torch.where(is_right(logits, y), torch.inf, 0.0).double()
            for planes in self.planes(logits, y):
                for restart in range(self.restarts):
                    left = (distance > limit).nonzero()[:, 0]
                    if len(left) == 0:
                        break
                    samples = take(Samples(x, y, x, planes, clean_margin, limit), left)
                    if restart > 0:
                        samples = replace(samples, point=starts(restart, x, left))
                    closest = walk.run(gradient, samples)
                    walk.refine(gradient, samples, closest)
                    closer = closest.distance < distance[left]
                    image = torch.where(rows(closer, x), closest.image, x_adv[left])
                    x_adv = x_adv.index_copy(0, left, image)
                    distance = distance.index_copy(
                        0, left, torch.minimum(closest.distance, distance[left])
                    )
            fooled = distance <= limit
            x_adv = torch.where(rows(fooled, x), x_adv, x)
            return FABResult(x_adv, gradient.cost, fooled, ball.notes, distance)


class Starts(Protocol):
    """Where the runs after the first begin."""

    def __call__(self, restart: int, x: Tensor, left: Tensor) -> Tensor:
        """The starts of run number `restart` for the samples `left` of the batch `x`."""
        ...


class OwnStarts:
    """Random points within eps / 2 of x: by the generator, the run and the sample's id alone."""

    def __init__(self, ball: Ball, generators: list[Generator | None], sample_ids: Tensor) -> None:
        self._ball, self._generators, self._ids = ball, generators, sample_ids

    def __call__(self, restart: int, x: Tensor, left: Tensor) -> Tensor:
        """See `Starts`."""
        start = self._ball.norm.random_start(
            x,
            eps=self._ball.eps * 0.5,
            bounds=self._ball.bounds,
            generator=self._generators[restart],
            sample_ids=self._ids,
        )
        return start[left]
