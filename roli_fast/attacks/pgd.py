"""Projected gradient descent (Madry et al., "Towards Deep Learning Models Resistant to Adversarial
Attacks", ICLR 2018, section 2.1), with the momentum of MI-FGSM (Dong et al., CVPR 2018)."""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Generator, Tensor

from roli_fast.attacks.base import ATTACKS, AttackInputs, AttackResult, Ball, BallAttack
from roli_fast.attacks.objective import (
    RULES,
    Criterion,
    Goal,
    check_loss,
    check_target,
    choose,
    entry_of,
    name_of,
    notes_on,
)
from roli_fast.attacks.passes import Passes, Samples, column, take
from roli_fast.attacks.restarts import Best, SearchResult, restart_generators, until_fooled
from roli_fast.errors import ArgumentError, check_choice, describe


@ATTACKS.register("pgd")
@dataclass(frozen=True)
class PGD(BallAttack):
    """PGD-k costs k forwards and k input-backwards, and one more forward unless keep="last".

    With r > 1 restarts each costs this and one forward more, by which the samples that are fooled
    leave the restarts to come; the result is a restart's that fools, or else the one of highest
    loss. `targets`, `target` and loss "kl" cost one forward on the original images.

    Args:
        step_size: length of one step; null takes eps / 4, as RoLI does.
        steps: number of gradient steps.
        random_start: start from a random point of the ball instead of the image itself.
        keep: "last" returns the last iterate, "best" the iterate of highest loss, image by image;
            "adversarial" the first one that fools the model, and the last where none does;
            "best_batch" the iterate of highest mean loss, one for all images, as RoLI's release.
        loss: what the steps ascend: "ce", "dlr", "margin", "kl" from the clean logits (TRADES), or
            a callable of (logits, y), see `Criterion`.
        restarts: number of searches, each from its own random start.
        momentum: decay of the accumulated gradient, 1 in MI-FGSM; 0 takes the gradient as it is.
        targets: aim at a wrong class instead of away from the label: "least_likely" or "random";
            null does not, unless the call gives a `target`.
        eot: passes an iterate, over which gradient and loss are averaged: for models that draw.
        compact: with keep="adversarial" an image leaves the batch as soon as it fools the model;
            false keeps all shapes as they are. The result is the same.
    """

    step_size: float | None = None
    steps: int = 10
    random_start: bool = True
    keep: Literal["last", "best", "adversarial", "best_batch"] = "last"
    loss: str | Criterion = "ce"
    restarts: int = 1
    momentum: float = 0.0
    targets: Literal["least_likely", "random"] | None = None
    eot: int = 1
    compact: bool = True

    options = ("eps", "target")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("keep", self.keep, ("last", "best", "adversarial", "best_batch"))
        check_choice("targets", self.targets, (*RULES, None))
        check_loss(self.loss, targeted=self.targets is not None)
        check_random_start(self.random_start, self.restarts, self.loss)

    @property
    def label(self) -> str:
        """ "pgd-10" for ten steps; what else differs from plain PGD follows."""
        parts = [f"pgd-{self.steps}"]
        parts += [name_of(self.loss)] if self.loss != "ce" else []
        parts += [f"m{self.momentum:g}"] if self.momentum else []
        parts += [self.targets.replace("_", "-")] if self.targets else []
        parts += [f"r{self.restarts}"] if self.restarts > 1 else []
        parts += [f"eot{self.eot}"] if self.eot > 1 else []
        parts += ["adversarial"] if self.keep == "adversarial" else []
        return "-".join(parts)

    def search(self, inputs: AttackInputs) -> AttackResult:
        ball, inputs = self.ball(inputs)
        with inputs.gradient() as gradient:
            passes = Passes(gradient, self.eot)
            goal = self._goal(passes, inputs)
            samples = Samples(inputs.x, goal, inputs.ids, ball.eps)
            if self.restarts > 1:
                x_adv, fooled = self._restarted(passes, samples, ball, inputs.generator)
            else:
                x_adv, fooled = self._climb(passes, samples, ball, inputs.generator)
            notes = notes_on(self.loss, passes.classes) + ball.notes
            return AttackResult(x_adv, gradient.cost, fooled, notes)

    def _goal(self, passes: Passes, inputs: AttackInputs) -> Goal:
        x, y, target = inputs.x, inputs.y, inputs.target
        if target is not None:
            if self.targets:
                fix = "Give either the field or the argument."
                raise ArgumentError(describe("target", "None", f"targets={self.targets!r}", fix))
            check_loss(self.loss, targeted=True)
            check_target(target, y, passes.clean(x, y))
            return Goal(self.loss, y, target)
        if self.targets:
            clean = passes.clean(x, y)
            return Goal(self.loss, y, choose(self.targets, clean, y, inputs.generator, inputs.ids))
        from_clean = entry_of(self.loss).from_clean
        return Goal(self.loss, y, clean=passes.clean(x, y) if from_clean else None)

    def _start(self, samples: Samples, ball: Ball, generator: Generator | None) -> Tensor:
        if not self.random_start:
            return samples.x.clone()
        return ball.norm.random_start(
            samples.x,
            eps=samples.eps,
            bounds=ball.bounds,
            generator=generator,
            sample_ids=samples.ids,
        )

    def _step(self, x_adv: Tensor, grad: Tensor, samples: Samples, ball: Ball) -> None:
        size = self.step_size if self.step_size is not None else samples.eps / 4
        ball.norm.step_(x_adv, grad, samples.x, eps=samples.eps, step_size=size, bounds=ball.bounds)

    def _climb(
        self, passes: Passes, samples: Samples, ball: Ball, generator: Generator | None
    ) -> tuple[Tensor, Tensor | None]:
        """One search, and who is fooled where it looks."""
        if self.keep == "adversarial":
            return self._climb_until_fooled(passes, samples, ball, generator)
        x_adv = self._start(samples, ball, generator)
        return self._ascend(passes, x_adv, samples, ball), None

    def _ascend(self, passes: Passes, x_adv: Tensor, samples: Samples, ball: Ball) -> Tensor:
        """All steps from `x_adv`, which they change."""
        best = None if self.keep == "last" else Best(whole_batch=self.keep == "best_batch")
        velocity = None
        for _ in range(self.steps):
            grad, loss, _logits = passes.gradient(x_adv, samples.goal)
            if best:
                best.update(x_adv, loss)
            if self.momentum:
                grad = velocity = accumulated(velocity, grad, self.momentum)
            self._step(x_adv, grad, samples, ball)
        if best:
            loss, _logits = passes.evaluate(x_adv, samples.goal)
            x_adv = best.update(x_adv, loss)
        return x_adv

    def _climb_until_fooled(
        self, passes: Passes, samples: Samples, ball: Ball, generator: Generator | None
    ) -> tuple[Tensor, Tensor]:
        """Each sample's first iterate that reaches the goal; with `compact` it leaves with it."""
        x_adv = self._start(samples, ball, generator)
        found, place = x_adv.clone(), torch.arange(len(x_adv), device=x_adv.device)
        fooled = torch.zeros(len(x_adv), dtype=torch.bool, device=x_adv.device)
        velocity = None
        for step in range(self.steps + 1):
            if step < self.steps:
                grad, _loss, logits = passes.gradient(x_adv, samples.goal)
            else:
                grad, (_loss, logits) = None, passes.evaluate(x_adv, samples.goal)
            now = fooled[place]
            new = samples.goal.reached(logits) & ~now
            found.index_copy_(0, place, torch.where(column(now, x_adv), found[place], x_adv))
            fooled[place] = now | new
            if grad is None:
                break
            if self.momentum:
                grad = velocity = accumulated(velocity, grad, self.momentum)
            if self.compact and bool(new.any()):
                stay = (~new).nonzero()[:, 0]
                if len(stay) == 0:
                    break
                samples, place = take(samples, stay), place[stay]
                x_adv, grad = x_adv[stay], grad[stay]
                velocity = None if velocity is None else velocity[stay]
            self._step(x_adv, grad, samples, ball)
        return found, fooled

    def _restarted(
        self, passes: Passes, samples: Samples, ball: Ball, generator: Generator | None
    ) -> tuple[Tensor, Tensor]:
        """The best of all restarts, and whether it fools."""

        def once(source: Generator | None, rows: Tensor) -> SearchResult:
            part = take(samples, rows)
            x_adv, _ = self._climb(passes, part, ball, source)
            loss, logits = passes.evaluate(x_adv, part.goal)
            return SearchResult(x_adv, part.goal.reached(logits), loss)

        sources = restart_generators(generator, self.restarts, samples.x.device)
        nobody = torch.zeros(len(samples), dtype=torch.bool, device=samples.x.device)
        found = until_fooled(samples.x, nobody, [partial(once, source) for source in sources])
        return found.x_adv, found.fooled


def check_random_start(random_start: bool, restarts: int, loss: str | Criterion) -> None:
    """Raise without a random start where it is needed: restarts would be equal, and the gradient of
    "kl" is zero at the image itself."""
    for name, value, needs in (("restarts", restarts, restarts > 1), ("loss", loss, loss == "kl")):
        if needs and not random_start:
            fix = "Set random_start=True."
            raise ArgumentError(describe(name, "one that needs no random start", repr(value), fix))


def accumulated(velocity: Tensor | None, grad: Tensor, momentum: float) -> Tensor:
    """momentum * velocity + grad / ||grad||_1 (Dong et al., equation 6); a zero gradient adds 0."""
    wide = torch.promote_types(grad.dtype, torch.float32)
    length = grad.abs().flatten(1).sum(1, dtype=wide).clamp(min=torch.finfo(wide).tiny)
    unit = (grad / column(length, grad)).to(grad.dtype)
    return unit if velocity is None else momentum * velocity + unit
