"""Auto-PGD (Croce & Hein 2020, "Reliable evaluation of adversarial robustness with an ensemble of
diverse parameter-free attacks", arXiv:2003.01690; L1: "Mind the box", arXiv:2103.01208)."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from roli_fast.attacks.apgd_schedule import large_radius_stages
from roli_fast.attacks.apgd_search import Found, Plan, climb
from roli_fast.attacks.apgd_start import OwnStarts, Starts
from roli_fast.attacks.apgd_stepping import OneNorm
from roli_fast.attacks.base import (
    ATTACKS,
    AttackInputs,
    AttackResult,
    Ball,
    BallAttack,
    check_choice,
    check_density,
    check_steps,
)
from roli_fast.attacks.objective import LOSSES, Goal, check_loss_name, is_right, notes_on
from roli_fast.attacks.passes import Passes, Samples, take
from roli_fast.errors import ArgumentError, describe
from roli_fast.norms import NORMS
from roli_fast.threat import Bounds, check_positive


@ATTACKS.register("apgd")
@dataclass(frozen=True)
class APGD(BallAttack):
    """PGD with momentum whose steps adapt to each image's progress: no step size to choose.

    With keep="adversarial" only images that are classified right are attacked, an image's result is
    its first misclassified iterate (the authors' code keeps the last), and the restarts attack what
    is left. An image that is never misclassified gives the iterate of highest loss, one that is
    wrong to begin with itself. n steps cost n + 1 forwards and n input-backwards a restart, and one
    forward on the original images.

    With keep="best" all images are attacked and give the iterate of highest loss: n + 1 forwards
    and n input-backwards a restart, the attack for training.

    Args:
        norm: "linf", "l2" or "l1"; null in a run's configuration takes the run's threat model.
        eps: radius; null takes the norm's usual one (8/255, 0.5, 12 in [0, 1] images), which the
            result then notes, and in a run that of the run's threat model.
        steps: number of gradient steps.
        loss: what the steps ascend: "ce", "dlr", "margin", or "kl" from the clean logits.
        restarts: number of searches, each from its own random start.
        random_start: start from a random point of the ball instead of the image itself.
        keep: "adversarial" or "best", see above.
        rho: in linf and l2 a step is halved unless more than this part of the last steps raised
            the loss.
        density: which part of an image's entries the first steps move in l1; 0.2 in evaluation,
            0.05 in RAMP's training.
        large_radius: in l1 search 3 eps and 2 eps for 30 % of the steps each, and eps for the rest,
            as AutoAttack does. Only the last stage's iterates count.
        eot: passes an iterate, over which gradient and loss are averaged: for models that draw.
        compact: an image leaves the batch as soon as it is misclassified; false keeps all shapes as
            they are, without any wait for the device within a restart. The result is the same.
        bounds: lowest and highest valid pixel; null takes the run's threat model.
    """

    norm: str | None = "linf"
    eps: float | None = None
    steps: int = 100
    loss: str = "ce"
    restarts: int = 1
    random_start: bool = True
    keep: Literal["adversarial", "best"] = "adversarial"
    rho: float = 0.75
    density: float = 0.2
    large_radius: bool = False
    eot: int = 1
    compact: bool = True
    bounds: Bounds | None = (0.0, 1.0)

    def __post_init__(self) -> None:
        self.check_ball()
        for name in ("steps", "restarts", "eot"):
            check_steps(name, getattr(self, name))
        check_loss_name(self.loss)
        check_choice("keep", self.keep, ("adversarial", "best"))
        check_positive("rho", self.rho)
        check_density(self.density)
        if not self.random_start:
            self._check_no_random_start()
        if self.large_radius:
            self._check_large_radius(self.norm)

    def _check_no_random_start(self) -> None:
        wrong = {"restarts": self.restarts > 1, "loss": self.loss == "kl"}
        for name, is_wrong in wrong.items():
            if is_wrong:
                got, fix = repr(getattr(self, name)), "Set random_start=True."
                raise ArgumentError(describe(name, "one that needs no random start", got, fix))

    def _check_large_radius(self, norm: str | None) -> None:
        if norm is not None and not NORMS[norm].sparse:
            fix = "Set norm='l1' or large_radius=False."
            raise ArgumentError(describe("large_radius", "False", f"True in {norm}", fix))
        if min(steps for _, steps in large_radius_stages(self.steps)) < 1:
            fix = "Each of its three stages needs one."
            raise ArgumentError(
                describe("steps", "3, 5 or more with large_radius", self.steps, fix)
            )

    @property
    def label(self) -> str:
        """ "apgd-ce-100" for 100 steps on the cross-entropy; restarts follow."""
        return self._labelled(f"apgd-{self.loss}-{self.steps}")

    def _labelled(self, name: str) -> str:
        parts = [name]
        parts += [f"r{self.restarts}"] if self.restarts > 1 else []
        parts += ["large"] if self.large_radius else []
        parts += [f"eot{self.eot}"] if self.eot > 1 else []
        return "-".join(parts)

    @property
    def _needs_clean(self) -> bool:
        return self.keep == "adversarial" or LOSSES[self.loss].from_clean

    def _goals(self, y: Tensor, clean: Tensor | None) -> tuple[list[Goal], tuple[str, ...]]:
        """What each search is after, one after another, and notes for the user."""
        from_clean = LOSSES[self.loss].from_clean
        goal = Goal(self.loss, y, clean=clean if from_clean else None)
        return [goal] * self.restarts, ()

    def search(self, inputs: AttackInputs) -> AttackResult:
        ball, inputs = self.ball(inputs)
        if self.large_radius:
            self._check_large_radius(NORMS.name_of(ball.norm))
        x, y = inputs.x, inputs.y
        with inputs.gradient() as gradient:
            passes = Passes(gradient, self.eot)
            clean = passes.clean(x, y) if self._needs_clean else None
            goals, notes = self._goals(y, clean)
            starts = self.starts(inputs, len(goals))
            searches = [Samples(x, goal, inputs.ids, ball.eps) for goal in goals]
            if self.keep == "best" or clean is None:
                x_adv, fooled = self._highest_loss(passes, searches, ball, starts), None
            else:
                right = is_right(clean, y)
                x_adv, fooled = self._adversarial(passes, searches, ball, starts, right)
            notes = notes_on(self.loss, passes.classes) + notes + ball.notes
            return AttackResult(x_adv, gradient.cost, fooled, notes)

    def starts(self, inputs: AttackInputs, count: int) -> Starts:
        """The source of the starts of `count` searches, for a subclass that draws otherwise."""
        return OwnStarts(inputs.generator, count, inputs.x.device)

    def _adversarial(  # noqa: PLR0913 - the searches and where they begin
        self,
        passes: Passes,
        searches: list[Samples],
        ball: Ball,
        starts: Starts,
        right: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """One search after another, each on the samples that are still right."""
        x_adv, fooled = searches[0].x.clone(), ~right
        highest = torch.full(right.shape, -torch.inf, dtype=torch.float64, device=right.device)
        for number, samples in enumerate(searches):
            rows = (~fooled).nonzero()[:, 0]
            if len(rows) == 0:
                break
            found = self._search(passes, take(samples, rows), ball, starts, number)
            better = (found.fooled | (found.loss > highest[rows])).nonzero()[:, 0]
            x_adv[rows[better]] = found.x_adv[better]
            highest[rows[better]] = found.loss[better]
            fooled[rows] = found.fooled
        return x_adv, fooled

    def _highest_loss(
        self, passes: Passes, searches: list[Samples], ball: Ball, starts: Starts
    ) -> Tensor:
        """The best iterate of all searches, for every sample."""
        best = self._search(passes, searches[0], ball, starts, 0)
        for number, samples in enumerate(searches[1:], start=1):
            found = self._search(passes, samples, ball, starts, number)
            better = (found.loss > best.loss).nonzero()[:, 0]
            best.x_adv[better], best.loss[better] = found.x_adv[better], found.loss[better]
        return best.x_adv

    def _search(
        self, passes: Passes, samples: Samples, ball: Ball, starts: Starts, number: int
    ) -> Found:
        """One start, and one loop for each radius."""
        norm = NORMS.name_of(ball.norm)
        large = self.large_radius
        stages = large_radius_stages(self.steps) if large else [(1, self.steps)]
        widest = replace(samples, eps=samples.eps * stages[0][0])
        start = samples.x.clone()
        if self.random_start:
            start = starts(number, norm, widest, ball.bounds)
        found = None
        for factor, steps in stages:
            part = replace(samples, eps=samples.eps * factor)
            if found is not None:
                start = ball.norm.project_(found.x_adv, part.x, eps=part.eps, bounds=ball.bounds)
            plan = Plan(
                stepping=OneNorm(norm, self.rho, None if large else self.density),
                bounds=ball.bounds,
                steps=steps,
                collect=factor == 1 and self.keep == "adversarial",
                compact=self.compact,
            )
            found = climb(passes, part, start, plan)
        assert found is not None
        return found
