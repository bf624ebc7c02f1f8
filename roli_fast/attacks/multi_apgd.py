"""APGD in several norms at once, the attack of multi-norm training (RAMP, Jiang & Singh 2024,
arXiv:2402.06827; E-AT, Croce & Hein 2022, arXiv:2105.12508)."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from roli_fast.attacks.apgd_search import Pass, Plan, climb
from roli_fast.attacks.apgd_stepping import OneNorm, SeveralNorms
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
from roli_fast.threat import Bounds, check_positive


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


def worst_of(found: Iterable[NormFound]) -> Tensor:
    """Sample by sample the images of highest loss, (B, ...)."""
    best = Best()
    for each in found:
        best.update(each.x_adv, each.loss)
    assert best.images is not None
    return best.images


@dataclass(frozen=True)
class MultiResult(AttackResult):
    """What the searches in all norms found: `x_adv` has the images of highest loss, sample by
    sample, at equal losses the first's, and `found` each norm's own, in the order of `norms`."""

    found: dict[str, NormFound] = field(default_factory=dict)


@ATTACKS.register("multi_apgd")
@dataclass(frozen=True)
class MultiAPGD(SeveralBalls):
    """APGD as training uses it, from the image itself, in each of several norms.

    Each norm's result is that of APGD(keep="best", random_start=False, density=0.05) alone. All
    begin with the same pass on the original images, which is made once, and norms of equal step
    counts step side by side in one batch: n steps in m norms cost 1 + m n forwards and
    1 + m (n - 1) input-backwards an image, where m attacks would cost m (n + 1) and m n.

    `attack(model, x, y)` gives each image's worst of all norms: training on it is the strategy MAX
    (Tramer & Boneh 2019, arXiv:1904.13000). `found` of `run`'s result has them all.

    Args:
        norms: some of "linf", "l2", "l1"; null in a run's configuration takes those of the run's
            threat model.
        eps: a radius for each of them, in their order; null takes the norms' usual ones (8/255,
            0.5, 12 in [0, 1] images), which the result then notes, and in a run those of the run's
            threat model.
        steps: number of gradient steps.
        l1_steps: those in l1, where they differ; null takes `steps`.
        rho: in linf and l2 a step is halved unless more than this part of the last steps raised
            the loss.
        density: which part of an image's entries the first steps move in l1.
        bounds: lowest and highest valid pixel; null takes the run's threat model.
    """

    norms: tuple[str, ...] | None = USUAL_NORMS
    eps: tuple[float, ...] | None = None
    steps: int = 10
    l1_steps: int | None = None
    rho: float = 0.75
    density: float = 0.05
    bounds: Bounds | None = (0.0, 1.0)

    def __post_init__(self) -> None:
        self.check_balls()
        check_steps("steps", self.steps)
        if self.l1_steps is not None:
            check_steps("l1_steps", self.l1_steps)
        check_positive("rho", self.rho)
        check_density(self.density)

    @property
    def label(self) -> str:
        """ "multi-apgd-10" for ten steps, with those in l1 behind where they differ."""
        own = self.l1_steps not in (None, self.steps)
        return f"multi-apgd-{self.steps}" + (f"-l1-{self.l1_steps}" if own else "")

    def search(self, inputs: AttackInputs) -> MultiResult:
        """All norms' results, without a wait for the device between the steps; nothing is drawn."""
        balls, inputs = self.balls(inputs)
        with inputs.gradient() as gradient:
            passes = Passes(gradient)
            samples = Samples(inputs.x, Goal("ce", inputs.y), inputs.ids, 0.0)
            first = passes.gradient(inputs.x, samples.goal)
            found: dict[str, NormFound] = {}
            for steps, group in self._groups(balls).items():
                found |= self._side_by_side(passes, samples, first, group, steps)
            found = {norm: found[norm] for norm in balls}
            worst = worst_of(found.values())
            return MultiResult(worst, gradient.cost, notes=self.notes(), found=found)

    def _groups(self, balls: dict[str, Ball]) -> dict[int, dict[str, Ball]]:
        """Number of steps -> the norms that make so many."""
        groups: dict[int, dict[str, Ball]] = {}
        for norm, ball in balls.items():
            steps = (self.l1_steps or self.steps) if norm == "l1" else self.steps
            groups.setdefault(steps, {})[norm] = ball
        return groups

    def _side_by_side(
        self,
        passes: Passes,
        samples: Samples,
        first: Pass,
        balls: dict[str, Ball],
        steps: int,
    ) -> dict[str, NormFound]:
        """One loop in all these norms, from the pass on the original images."""
        count, size = len(balls), len(samples)

        def repeated(tensor: Tensor) -> Tensor:
            return torch.cat([tensor] * count)  # keeps the layout

        every = Samples(
            repeated(samples.x), Goal("ce", repeated(samples.goal.y)), repeated(samples.ids), 0.0
        )
        parts = [(OneNorm(norm, self.rho, self.density), b.eps) for norm, b in balls.items()]
        plan = Plan(
            stepping=SeveralNorms(tuple(parts)),
            bounds=next(iter(balls.values())).bounds,
            steps=steps,
            collect=False,
            compact=False,
            watch=True,
        )
        grad, loss, logits = map(repeated, first)
        found = climb(passes, every, every.x.clone(), plan, (grad, loss, logits))
        rows = [slice(i * size, (i + 1) * size) for i in range(count)]
        return {
            norm: NormFound(found.x_adv[part], found.loss[part], ~found.fooled[part])
            for norm, part in zip(balls, rows, strict=True)
        }
