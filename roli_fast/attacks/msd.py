"""Multi steepest descent (Maini, Wong & Kolter 2020, "Adversarial Robustness Against the Union of
Multiple Perturbation Models", arXiv:1909.04068, Algorithm 1)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from roli_fast.attacks.base import (
    ATTACKS,
    AttackInputs,
    AttackResult,
    Ball,
    check_density,
    check_steps,
)
from roli_fast.attacks.objective import Goal
from roli_fast.attacks.passes import Passes, Samples
from roli_fast.attacks.pgd import Best
from roli_fast.attacks.several_balls import USUAL_NORMS, SeveralBalls
from roli_fast.norms import NORMS
from roli_fast.threat import Bounds, check_positive


@ATTACKS.register("msd")
@dataclass(frozen=True)
class MSD(SeveralBalls):
    """One iterate for all norms: each step is that norm's which raises the loss most.

    A step tries the steepest ascent of every norm from the same iterate, each projected on its own
    ball, and keeps, image by image, the candidate of highest loss. It begins at the image itself;
    the result is the iterate of highest loss. A step in m norms costs 1 + m forwards and one
    input-backward an image, the m candidates in one batch; nothing comes after the last.

    Steps are the sign of the gradient in linf, its direction in l2, and in l1 the signs of its
    largest entries (the paper moves 5 to 20 of them, drawn anew each step).

    Args:
        norms: some of "linf", "l2", "l1"; null in a run's configuration takes those of the run's
            threat model.
        eps: a radius for each of them, in their order; null takes the norms' usual ones (8/255,
            0.5, 12 in [0, 1] images), which the result then notes, and in a run those of the run's
            threat model.
        steps: number of gradient steps, 50 in the paper.
        step_size_linf: length of one step in multiples of eps; null takes 5 / steps, the paper's
            0.003 of 0.03 at 50 steps, and at most 1.
        step_size_l2: likewise, the paper's 0.05 of 0.5.
        step_size_l1: likewise; null takes 4.17 / steps, the paper's 1 of 12 at 50 steps.
        density: which part of an image's entries a step moves in l1.
        bounds: lowest and highest valid pixel; null takes the run's threat model.
    """

    norms: tuple[str, ...] | None = USUAL_NORMS
    eps: tuple[float, ...] | None = None
    steps: int = 10
    step_size_linf: float | None = None
    step_size_l2: float | None = None
    step_size_l1: float | None = None
    density: float = 0.05
    bounds: Bounds | None = (0.0, 1.0)

    def __post_init__(self) -> None:
        self.check_balls()
        check_steps("steps", self.steps)
        for name in ("step_size_linf", "step_size_l2", "step_size_l1"):
            size = getattr(self, name)
            if size is not None:
                check_positive(name, size)
        check_density(self.density)

    @property
    def label(self) -> str:
        """ "msd-10" for ten steps."""
        return f"msd-{self.steps}"

    def step_size(self, norm: str) -> float:
        """Length of one step in this norm, in multiples of its eps."""
        given = getattr(self, f"step_size_{norm}", None)
        return min(1.0, NORMS[norm].msd_length / self.steps) if given is None else given

    def search(self, inputs: AttackInputs) -> AttackResult:
        balls, inputs = self.balls(inputs)
        x = inputs.x
        with inputs.gradient() as gradient:
            passes, best = Passes(gradient), Best()
            samples = Samples(x, Goal("ce", inputs.y), inputs.ids, 0.0)
            x_adv = x
            for step in range(self.steps):
                grad, loss, _logits = passes.gradient(x_adv, samples.goal)
                if step == 0:
                    best.update(x_adv, loss)
                x_adv, loss = self._steepest(passes, samples, x_adv, grad, balls)
                best.update(x_adv, loss)
            assert best.images is not None
            return AttackResult(best.images, gradient.cost, notes=self.notes())

    def _steepest(
        self,
        passes: Passes,
        samples: Samples,
        x_adv: Tensor,
        grad: Tensor,
        balls: dict[str, Ball],
    ) -> tuple[Tensor, Tensor]:
        """The candidate of highest loss of each sample, and that loss (B,)."""
        candidates = torch.cat([x_adv] * len(balls))
        parts = dict(zip(balls, candidates.chunk(len(balls)), strict=True))
        for norm, ball in balls.items():
            size = self.step_size(norm) * ball.eps
            ball.norm.with_density(self.density).step_(
                parts[norm], grad, samples.x, eps=ball.eps, step_size=size, bounds=ball.bounds
            )
        goal = Goal("ce", torch.cat([samples.goal.y] * len(balls)))
        losses, _logits = passes.evaluate(candidates, goal)
        chosen = Best()
        for part, loss in zip(parts.values(), losses.chunk(len(balls)), strict=True):
            chosen.update(part, loss)
        assert chosen.images is not None and chosen.loss is not None
        return chosen.images, chosen.loss
