"""Attacks in several norms at once: MultiAPGD, which searches each of them, and MSD, whose one
iterate steps in the norm that raises the loss most."""

from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from roli_fast.attacks.apgd_search import Search, begin
from roli_fast.attacks.base import (
    ATTACKS,
    Attack,
    AttackInputs,
    AttackResult,
    Ball,
    check_ball,
    check_given,
)
from roli_fast.attacks.objective import Goal, is_right
from roli_fast.attacks.passes import Passes, Samples
from roli_fast.attacks.restarts import Best, highest_loss
from roli_fast.errors import ArgumentError, describe
from roli_fast.norms import NORMS
from roli_fast.threat import Bounds, ThreatModel, as_tuple, check_images, check_positive

USUAL_NORMS = ("linf", "l2", "l1")
"""The norms whose balls multi-norm papers attack."""

SeveralBallsT = TypeVar("SeveralBallsT", bound="SeveralBalls")


@dataclass(frozen=True)
class SeveralBalls(Attack):
    """Base of attacks that may end in any of several balls.

    Args:
        norms: some of "linf", "l2", "l1"; null in a run's configuration takes those of the run's
            threat model.
        eps: a radius for each of them, in their order; null takes the norms' usual ones (8/255,
            0.5, 12 in [0, 1] images), which the result then notes, and in a run those of the run's
            threat model.
        steps: number of gradient steps.
        density: which part of an image's entries a step moves in l1, with APGD the first ones.
        bounds: lowest and highest valid pixel; null takes the run's threat model.
    """

    norms: tuple[str, ...] | None = USUAL_NORMS
    eps: tuple[float, ...] | None = None
    steps: int = 10
    density: float = 0.05
    bounds: Bounds | None = (0.0, 1.0)

    def __post_init__(self) -> None:
        """Raise unless the fields are usable or None; lists become tuples."""
        super().__post_init__()
        for name in ("norms", "eps"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, as_tuple(name, getattr(self, name)))
        self._check_norms()
        if self.eps is not None:
            self._check_number("eps", self.eps)
        check_ball(None, None, self.bounds)
        norms, radii = self.norms or (), self.eps or ()
        for place, eps in enumerate(radii):
            check_ball(norms[place] if norms else None, eps, self.bounds)

    def _check_norms(self) -> None:
        for norm in self.norms or ():
            if norm not in NORMS:
                expected = f"each one of: {', '.join(NORMS)}"
                raise ArgumentError(describe("norms", expected, repr(norm)))
        if self.norms == () or len(set(self.norms or ())) < len(self.norms or ()):
            raise ArgumentError(describe("norms", "one or more different norms", self.norms))

    def _check_number(self, name: str, values: tuple[float, ...]) -> None:
        if not values or self.norms is not None and len(values) != len(self.norms):
            norms = self.norms or ()
            got = f"{len(values)} for {len(norms)} ({', '.join(norms) or 'none'})"
            fix = "Write them in the order of the norms: norms linf,l1 and eps 8/255,12."
            raise ArgumentError(describe(name, "one for each norm", got, fix))

    def under(self: SeveralBallsT, threat: ThreatModel) -> SeveralBallsT:
        """The same attack with every field that is None taken from all norms of `threat`.

        Raises:
            ArgumentError: `norms` is given, `eps` is not, and the threat has no such norm.
        """
        norms = self.norms or tuple(each.norm for each in threat.each)
        eps = self.eps or tuple(threat.radius(norm) for norm in norms)
        return replace(self, norms=norms, eps=eps, bounds=self.bounds or threat.bounds)

    def balls(self, inputs: AttackInputs) -> tuple[dict[str, Ball], AttackInputs]:
        """The ball of each norm, in the order of `norms`, and the inputs with `x` as `check_images`
        returns it.

        Raises:
            ArgumentError: norms or bounds are still None; images outside the bounds; a radius
                larger than any distance in the box.
        """
        check_given(norms=self.norms, bounds=self.bounds)
        assert self.norms is not None and self.bounds is not None
        x = check_images(inputs.x, self.bounds)
        radii = zip(self.norms, self.eps or (None,) * len(self.norms), strict=True)
        balls = {norm: Ball.of(norm, eps, self.bounds, x) for norm, eps in radii}
        return balls, replace(inputs, x=x)


def notes_of(balls: dict[str, Ball]) -> tuple[str, ...]:
    """What a result says of radii that were not given."""
    return tuple(note for ball in balls.values() for note in ball.notes)


@dataclass(frozen=True)
class NormFound:
    """What the search in one norm found.

    Args:
        x_adv: the iterates of highest loss, (B, ...); the original images take part.
        loss: their losses (B,), fp64, of the network in eval mode.
        robust: bool (B,), who was classified right at every iterate, the original image included.
    """

    x_adv: Tensor
    loss: Tensor
    robust: Tensor


@dataclass(frozen=True)
class MultiResult(AttackResult):
    """What the searches in all norms found: `x_adv` has the images of highest loss, sample by
    sample, at equal losses the first's, and `found` each norm's own, in the order of `norms`."""

    found: dict[str, NormFound] = field(default_factory=dict)


@ATTACKS.register("multi_apgd")
@dataclass(frozen=True)
class MultiAPGD(SeveralBalls):
    """APGD as training uses it, from the image itself, in each of several norms (RAMP, Jiang &
    Singh 2024, arXiv:2402.06827; E-AT, Croce & Hein 2022, arXiv:2105.12508).

    Each norm's result is that of APGD(keep="best", random_start=False, density=0.05) alone. All
    begin with the same pass on the original images, which is made once, and norms of equal step
    counts step side by side in one batch: n steps in m norms cost 1 + m n forwards and
    1 + m (n - 1) input-backwards an image, where m attacks would cost m (n + 1) and m n.

    `attack(model, x, y)` gives each image's worst of all norms: training on it is the strategy MAX
    (Tramer & Boneh 2019, arXiv:1904.13000). `found` of `run`'s result has them all. The other
    fields are those of `SeveralBalls`.

    Args:
        l1_steps: number of steps in l1, where it differs; null takes `steps`.
        rho: in linf and l2 a step is halved unless more than this part of the last steps raised
            the loss.
    """

    l1_steps: int | None = None
    rho: float = 0.75

    @property
    def label(self) -> str:
        """ "multi-apgd-10" for ten steps, with those in l1 behind where they differ."""
        own = self.l1_steps not in (None, self.steps)
        return f"multi-apgd-{self.steps}" + (f"-l1-{self.l1_steps}" if own else "")

    def only(self, *norms: str) -> "MultiAPGD":
        """The same attack in these of its norms alone, in this order.

        Raises:
            ArgumentError: a norm that has no eps here.
        """
        check_given(norms=self.norms)
        own = self.norms or ()
        radii = dict(zip(own, self.eps or own, strict=True))
        for norm in norms:
            if norm not in radii:
                expected = f"norms that the attack has ({', '.join(radii)})"
                fix = "Add it and its radius to the attack's norms and eps, or to the threat's."
                got = f"{norm!r}, which has no eps"
                raise ArgumentError(describe("norms", expected, got, fix))
        eps = self.eps and tuple(radii[norm] for norm in norms)
        return replace(self, norms=norms, eps=eps)

    def search(self, inputs: AttackInputs) -> MultiResult:
        """All norms' results, without a wait for the device between the steps; nothing is drawn."""
        balls, inputs = self.balls(inputs)
        with inputs.gradient() as gradient:
            passes, goal = Passes(gradient), Goal("ce", inputs.y)
            first = passes.gradient(inputs.x, goal)
            groups: dict[int, dict[str, Ball]] = {}
            for norm, ball in balls.items():
                steps = (self.l1_steps or self.steps) if ball.norm.sparse else self.steps
                groups.setdefault(steps, {})[norm] = ball
            found: dict[str, NormFound] = {}
            for steps, group in groups.items():
                found |= self._side_by_side(passes, inputs, first, group, steps)
            found = {norm: found[norm] for norm in balls}
            worst = highest_loss((own.x_adv, own.loss) for own in found.values())
            return MultiResult(worst, gradient.cost, notes=notes_of(balls), found=found)

    def _side_by_side(
        self,
        passes: Passes,
        inputs: AttackInputs,
        first: tuple[Tensor, Tensor, Tensor],
        balls: dict[str, Ball],
        steps: int,
    ) -> dict[str, NormFound]:
        """One search in each of these norms from the original images, whose pass is `first`; each
        step of all of them is one pass."""
        x, y, count = inputs.x, inputs.y, len(balls)
        settings: dict[str, Any] = dict(steps=steps, rho=self.rho, density=self.density)
        goal, searches = Goal("ce", y), list[Search]()
        for ball in balls.values():
            samples = Samples(x, goal, inputs.ids, ball.eps)
            grad, loss = first[0].clone(), first[1]
            searches.append(begin(ball, samples, x.clone(), grad, loss, **settings))
        together, robust = Goal("ce", y.repeat(count)), is_right(first[2], y).repeat(count)
        for step in range(1, steps + 1):
            x_adv = torch.cat([search.move(step) for search in searches])  # keeps the layout
            if step < steps:
                grad, losses, logits = passes.gradient(x_adv, together)
                grads = grad.chunk(count)
            else:  # nothing comes after it
                losses, logits = passes.evaluate(x_adv, together)
                grads = [search.grad for search in searches]
            robust &= is_right(logits, together.y)
            for search, grad, loss in zip(searches, grads, losses.chunk(count), strict=True):
                search.grad, search.loss = grad, loss
                search.adapt(step)
        flags = robust.chunk(count)
        return {
            norm: NormFound(search.best_x, search.best_loss.double(), kept)
            for norm, search, kept in zip(balls, searches, flags, strict=True)
        }


@ATTACKS.register("msd")
@dataclass(frozen=True)
class MSD(SeveralBalls):
    """One iterate for all norms: each step is that norm's which raises the loss most.

    Multi steepest descent (Maini, Wong & Kolter 2020, "Adversarial Robustness Against the Union of
    Multiple Perturbation Models", arXiv:1909.04068, Algorithm 1).

    A step tries the steepest ascent of every norm from the same iterate, each projected on its own
    ball, and keeps, image by image, the candidate of highest loss. It begins at the image itself;
    the result is the iterate of highest loss. A step in m norms costs 1 + m forwards and one
    input-backward an image, the m candidates in one batch; nothing comes after the last.

    Steps are the sign of the gradient in linf, its direction in l2, and in l1 the signs of its
    largest entries (the paper moves 5 to 20 of them, drawn anew each step). The paper makes 50
    steps. The other fields are those of `SeveralBalls`.

    Args:
        step_sizes: length of one step in each of the norms, in multiples of its eps; null takes at
            most 1, and at 50 steps the paper's 0.003 of 0.03 in linf, 0.05 of 0.5 in l2 and 1 of 12
            in l1: 5, 5 and 4.17 by the number of steps.
    """

    step_sizes: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.step_sizes is not None:
            sizes = as_tuple("step_sizes", self.step_sizes)
            object.__setattr__(self, "step_sizes", sizes)
            self._check_number("step_sizes", sizes)
            for size in sizes:
                check_positive("step_sizes", size)

    @property
    def label(self) -> str:
        """ "msd-10" for ten steps."""
        return f"msd-{self.steps}"

    def lengths(self) -> dict[str, float]:
        """Norm -> length of one step in multiples of its eps."""
        norms = self.norms or ()
        if self.step_sizes is not None:
            return dict(zip(norms, self.step_sizes, strict=True))
        return {norm: min(1.0, NORMS[norm].msd_length / self.steps) for norm in norms}

    def search(self, inputs: AttackInputs) -> AttackResult:
        balls, inputs = self.balls(inputs)
        with inputs.gradient() as gradient:
            passes, best = Passes(gradient), Best()
            x_adv, goal = inputs.x, Goal("ce", inputs.y)
            for step in range(self.steps):
                grad, loss, _logits = passes.gradient(x_adv, goal)
                if step == 0:
                    best.update(x_adv, loss)
                x_adv, loss = self._steepest(passes, inputs, x_adv, grad, balls)
                best.update(x_adv, loss)
            assert best.images is not None
            return AttackResult(best.images, gradient.cost, notes=notes_of(balls))

    def _steepest(
        self,
        passes: Passes,
        inputs: AttackInputs,
        x_adv: Tensor,
        grad: Tensor,
        balls: dict[str, Ball],
    ) -> tuple[Tensor, Tensor]:
        """The candidate of highest loss of each sample, and that loss (B,)."""
        candidates = torch.cat([x_adv] * len(balls))
        parts, lengths = candidates.chunk(len(balls)), self.lengths()
        for part, (norm, ball) in zip(parts, balls.items(), strict=True):
            size = lengths[norm] * ball.eps
            ball.norm.with_density(self.density).step_(
                part, grad, inputs.x, eps=ball.eps, step_size=size, bounds=ball.bounds
            )
        goal = Goal("ce", torch.cat([inputs.y] * len(balls)))
        losses, _logits = passes.evaluate(candidates, goal)
        chosen = Best()
        for part, loss in zip(parts, losses.chunk(len(balls)), strict=True):
            chosen.update(part, loss)
        assert chosen.images is not None and chosen.loss is not None
        return chosen.images, chosen.loss
