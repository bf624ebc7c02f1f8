"""Auto-PGD (Croce & Hein 2020, "Reliable evaluation of adversarial robustness with an ensemble of
diverse parameter-free attacks", arXiv:2003.01690; L1: "Mind the box", arXiv:2103.01208)."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from torch import Tensor

from roli_fast.attacks.apgd_search import climb
from roli_fast.attacks.base import (
    ATTACKS,
    AttackInputs,
    AttackResult,
    Ball,
    BallAttack,
    check_steps,
)
from roli_fast.attacks.objective import (
    Criterion,
    Goal,
    check_loss,
    check_target,
    entry_of,
    most_likely_others,
    name_of,
    notes_on,
)
from roli_fast.attacks.passes import Passes, Samples, take
from roli_fast.attacks.pgd import check_random_start
from roli_fast.attacks.restarts import (
    SearchResult,
    highest_loss,
    restart_generators,
    until_fooled,
)
from roli_fast.errors import ArgumentError, check_choice, describe
from roli_fast.norms import NORMS

Starts = Callable[[int, Ball, Samples], Tensor]
"""(number of a search, ball, samples whose eps is the first stage's) -> new tensor, where they
start."""


def large_radius_stages(steps: int) -> list[tuple[int, int]]:
    """(multiple of eps, steps): 3 eps and 2 eps for 30 % of the steps each, eps for the rest."""
    first = math.ceil(0.3 * steps)
    return [(3, first), (2, first), (1, steps - 2 * first)]


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
        steps: number of gradient steps.
        loss: what the steps ascend: "ce", "dlr", "margin", "kl" from the clean logits, or a
            callable of (logits, y), see `Criterion`.
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
    """

    steps: int = 100
    loss: str | Criterion = "ce"
    restarts: int = 1
    random_start: bool = True
    keep: Literal["adversarial", "best"] = "adversarial"
    rho: float = 0.75
    density: float = 0.2
    large_radius: bool = False
    eot: int = 1
    compact: bool = True

    options = ("eps", "target")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_loss(self.loss)
        check_choice("keep", self.keep, ("adversarial", "best"))
        check_random_start(self.random_start, self.restarts, self.loss)
        if self.large_radius:
            self._check_large_radius()

    def _check_large_radius(self) -> None:
        if self.norm is not None and not NORMS[self.norm].sparse:
            fix = "Set norm='l1' or large_radius=False."
            raise ArgumentError(describe("large_radius", "False", f"True in {self.norm}", fix))
        if min(steps for _, steps in large_radius_stages(self.steps)) < 1:
            fix = "Each of its three stages needs one."
            raise ArgumentError(
                describe("steps", "3, 5 or more with large_radius", self.steps, fix)
            )

    @property
    def label(self) -> str:
        """ "apgd-ce-100" for 100 steps on the cross-entropy; restarts follow."""
        return self._labelled(f"apgd-{name_of(self.loss)}-{self.steps}")

    def _labelled(self, name: str) -> str:
        parts = [name]
        parts += [f"r{self.restarts}"] if self.restarts > 1 else []
        parts += ["large"] if self.large_radius else []
        parts += [f"eot{self.eot}"] if self.eot > 1 else []
        return "-".join(parts)

    @property
    def _needs_clean(self) -> bool:
        return self.keep == "adversarial" or entry_of(self.loss).from_clean

    def _goals(
        self, y: Tensor, clean: Tensor | None, target: Tensor | None
    ) -> tuple[list[Goal], tuple[str, ...]]:
        """What each search is after, one after another, and notes for the user."""
        goal = Goal(self.loss, y, target, clean if entry_of(self.loss).from_clean else None)
        if target is not None:
            assert clean is not None
            check_loss(self.loss, targeted=True)
            check_target(target, y, clean)
        return [goal] * self.restarts, ()

    def search(self, inputs: AttackInputs) -> AttackResult:
        ball, inputs = self.ball(inputs)
        x, y, target = inputs.x, inputs.y, inputs.target
        with inputs.gradient() as gradient:
            passes = Passes(gradient, self.eot)
            looks = self._needs_clean or target is not None
            clean = passes.clean(x, y) if looks else None
            goals, notes = self._goals(y, clean, target)
            starts = self.starts(inputs, len(goals))

            def once(number: int, rows: Tensor | None = None) -> SearchResult:
                samples = Samples(x, goals[number], inputs.ids, ball.eps)
                samples = samples if rows is None else take(samples, rows)
                start = self._start(number, samples, ball, starts)
                return self._climb(passes, samples, start, ball)

            searches, fooled = [partial(once, number) for number in range(len(goals))], None
            if self.keep == "best":
                results = (search() for search in searches)
                x_adv = highest_loss((found.x_adv, found.loss) for found in results)
            else:
                assert clean is not None
                found = until_fooled(x, goals[0].reached(clean), searches)
                x_adv, fooled = found.x_adv, found.fooled
            notes = notes_on(self.loss, passes.classes) + notes + ball.notes
            return AttackResult(x_adv, gradient.cost, fooled, notes)

    def starts(self, inputs: AttackInputs, count: int) -> Starts:
        """Where `count` searches start, for a subclass that draws otherwise."""
        sources = restart_generators(inputs.generator, count, inputs.x.device)

        def start(number: int, ball: Ball, samples: Samples) -> Tensor:
            return ball.norm.search_start(
                samples.x,
                eps=samples.eps,
                bounds=ball.bounds,
                generator=sources[number],
                sample_ids=samples.ids,
            )

        return start

    @property
    def _stages(self) -> list[tuple[int, int]]:
        return large_radius_stages(self.steps) if self.large_radius else [(1, self.steps)]

    def _start(self, number: int, samples: Samples, ball: Ball, starts: Starts) -> Tensor:
        if not self.random_start:
            return samples.x.clone()
        return starts(number, ball, replace(samples, eps=samples.eps * self._stages[0][0]))

    def _climb(self, passes: Passes, samples: Samples, start: Tensor, ball: Ball) -> SearchResult:
        """One loop for each radius."""
        found, density = None, None if self.large_radius else self.density
        for factor, steps in self._stages:
            part = replace(samples, eps=samples.eps * factor)
            if found is not None:
                start = ball.norm.project_(found.x_adv, part.x, eps=part.eps, bounds=ball.bounds)
            found = climb(
                passes,
                ball,
                part,
                start,
                steps=steps,
                rho=self.rho,
                density=density,
                collect=factor == 1 and self.keep == "adversarial",
                compact=self.compact,
            )
        assert found is not None
        return found


@ATTACKS.register("apgd-t")
@dataclass(frozen=True)
class APGDT(APGD):
    """APGD towards the likeliest wrong classes, one after another, each `restarts` times
    (arXiv:2003.01690, section 4.2).

    The order of the classes is that of the clean logits, taken once: one forward in all. A search
    ends for an image with any misclassification, not only as the target. All fields are those of
    `APGD`, but:

    Args:
        loss: "dlr", the targeted difference of logits ratio, "ce" or "margin".
        targets: number of wrong classes, 9 in AutoAttack (5 in l1); a model with fewer has them
            all attacked, and the result says so.
    """

    loss: str | Criterion = "dlr"
    targets: int = 9

    options = ("eps",)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_loss(self.loss, targeted=True)
        check_steps("targets", self.targets)

    @property
    def label(self) -> str:
        """ "apgd-t-dlr-100"."""
        return self._labelled(f"apgd-t-{name_of(self.loss)}-{self.steps}")

    @property
    def _needs_clean(self) -> bool:
        return True

    def _goals(
        self, y: Tensor, clean: Tensor | None, target: Tensor | None
    ) -> tuple[list[Goal], tuple[str, ...]]:
        assert clean is not None
        order = most_likely_others(clean, y, self.targets)
        goals = [
            Goal(self.loss, y, other.contiguous(), any_class=True)
            for other in order.unbind(1)
            for _ in range(self.restarts)
        ]
        notes = ()
        if order.shape[1] < self.targets:
            classes = clean.shape[1]
            notes = (f"{order.shape[1]} targets, not {self.targets}: there are {classes} classes",)
        return goals, notes
