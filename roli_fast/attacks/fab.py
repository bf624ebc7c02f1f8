"""FAB, the fast adaptive boundary attack (Croce & Hein, "Minimally distorted adversarial examples
with a fast adaptive boundary attack", ICML 2020, arXiv:1907.02044)."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from roli_fast.attacks.base import (
    ATTACKS,
    AttackInputs,
    AttackResult,
    Ball,
    BallAttack,
    check_choice,
    check_steps,
    restart_generators,
)
from roli_fast.attacks.fab_search import NearestPlane, Planes, Samples, Walk, rows
from roli_fast.attacks.hyperplane import ORDERS, check_norm
from roli_fast.attacks.objective import is_right
from roli_fast.attacks.official import OfficialDraws, Rng
from roli_fast.attacks.passes import Passes, take
from roli_fast.errors import ArgumentError, describe
from roli_fast.losses import margin
from roli_fast.ops.rounding import compute_dtype, per_sample
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
            forward each. rng="official" makes none, as AutoAttack's code.
        minimal: keep on looking for a closer image after one within eps was met. False lets such a
            sample leave the batch: the same samples are fooled, at less cost.
        rng: "native" starts depend on the generator and a sample's id alone; "official" repeats
            those of github.com/fra31/auto-attack for this batch and `seed`, to compare with it.
        seed: of the official draws.
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
    rng: Rng = "native"
    seed: int = 0

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
        check_choice("rng", self.rng, ("native", "official"))

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

    def search(self, inputs: AttackInputs) -> FABResult:
        ball, inputs = self.ball(inputs)
        x, y = inputs.x, inputs.y
        final_search = 0 if self.rng == "official" else self.final_search
        walk = Walk(
            str(self.norm),
            ball.bounds,
            self.steps,
            self.alpha_max,
            self.eta,
            self.beta,
            final_search,
            self.minimal,
        )
        limit = per_sample(ball.eps, x).double().reshape(-1).expand(len(x))
        starts = _Starts(self, ball, inputs)
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
                    samples = replace(samples, point=starts.draw(restart, x, left))
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


class _Starts:
    """Where the runs start."""

    def __init__(self, attack: FAB, ball: Ball, inputs: AttackInputs) -> None:
        self._attack, self._ball, self._ids = attack, ball, inputs.ids
        device = inputs.x.device
        self._official = self._sources = None
        if attack.rng == "official":
            self._official = OfficialDraws(attack.seed, device)
        else:
            self._sources = restart_generators(inputs.generator, attack.restarts, device)

    def draw(self, restart: int, x: Tensor, left: Tensor) -> Tensor:
        """Starts for the samples `left` of the batch `x`."""
        if restart == 0:
            return x[left]
        if self._official is not None:
            return self._like_the_original(self._official, x[left], left)
        assert self._sources is not None
        radius = self._ball.eps * 0.5
        start = self._ball.norm.random_start(
            x,
            eps=radius,
            bounds=self._ball.bounds,
            generator=self._sources[restart],
            sample_ids=self._ids,
        )
        return start[left]

    def _like_the_original(self, draws: OfficialDraws, x: Tensor, left: Tensor) -> Tensor:
        """A point at half the radius in a random direction, cut to the box."""
        eps = self._ball.eps[left] if isinstance(self._ball.eps, Tensor) else self._ball.eps
        if self._attack.norm == "linf":
            drawn = 2 * draws.uniform(*x.shape) - 1
        else:
            drawn = draws.normal(*x.shape)
        drawn = drawn.to(compute_dtype(x.dtype))
        order = ORDERS[str(self._attack.norm)]
        length = torch.linalg.vector_norm(drawn.flatten(1), order, dim=1)
        radius = eps * torch.ones_like(length)
        return (x + rows(radius / length * 0.5, x) * drawn).to(x.dtype).clamp(*self._ball.bounds)
