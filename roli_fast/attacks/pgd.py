"""Projected gradient descent (Madry et al., "Towards Deep Learning Models Resistant to Adversarial
Attacks", ICLR 2018, section 2.1)."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Generator, Tensor

from roli_fast.attacks.base import ATTACKS, Attack, AttackResult
from roli_fast.engine import InputGradient
from roli_fast.engine.input_gradient import Model
from roli_fast.errors import ArgumentError, describe
from roli_fast.norms import NORMS
from roli_fast.threat import Bounds, ThreatModel, check_bounds, check_images, check_positive


@ATTACKS.register("pgd")
@dataclass(frozen=True)
class PGD(Attack):
    """PGD-k costs k forwards and k input-backwards, one more forward with keep="best".

    Args:
        norm: "linf", "l2" or "l1"; null in a run's configuration takes the run's
            threat model.
        eps: radius, 8/255 in [0, 1] images; null in a run takes the run's threat model.
        step_size: length of one step; null takes eps / 4, as RoLI does.
        steps: number of gradient steps.
        random_start: start from a random point of the ball instead of the image itself.
        keep: "last" returns the last iterate, "best" the iterate of highest loss, image by image.
        bounds: lowest and highest valid pixel; null takes the run's threat model.
    """

    norm: str | None = "linf"
    eps: float | None = 8 / 255
    step_size: float | None = 2 / 255
    steps: int = 10
    random_start: bool = True
    keep: Literal["last", "best"] = "last"
    bounds: Bounds | None = (0.0, 1.0)

    def __post_init__(self) -> None:
        if self.norm is not None:
            NORMS[self.norm]
        for name in ("eps", "step_size"):
            if getattr(self, name) is not None:
                check_positive(name, getattr(self, name))
        if not isinstance(self.steps, int) or isinstance(self.steps, bool) or self.steps < 1:
            raise ArgumentError(describe("steps", "an integer >= 1", repr(self.steps)))
        if self.keep not in ("last", "best"):
            raise ArgumentError(describe("keep", "'last' or 'best'", repr(self.keep)))
        if self.bounds is not None:
            check_bounds(self.bounds)

    @property
    def label(self) -> str:
        """ "pgd-10" for ten steps."""
        return f"pgd-{self.steps}"

    def under(self, threat: ThreatModel) -> "PGD":
        """The same attack with every field that is None taken from `threat`."""
        return replace(
            self,
            norm=self.norm or threat.norm,
            eps=self.eps if self.eps is not None else threat.eps,
            bounds=self.bounds or threat.bounds,
        )

    def keeper(self) -> "Best":
        """What keeps the best iterate with keep="best"."""
        return Best()

    def run(
        self,
        model: Model,
        x: Tensor,
        y: Tensor,
        generator: Generator | None = None,
        *,
        sample_ids: Tensor | None = None,
    ) -> AttackResult:
        """As `__call__`, with the cost beside the images."""
        if self.norm is None or self.eps is None or self.bounds is None:
            missing = [n for n in ("norm", "eps", "bounds") if getattr(self, n) is None]
            fix = "Set it, or call `.under(ThreatModel(...))` first."
            raise ArgumentError(describe(", ".join(missing), "a value", None, fix))
        norm, eps, bounds = NORMS[self.norm], self.eps, self.bounds
        step_size = self.step_size if self.step_size is not None else eps / 4
        check_images(x, bounds)
        x = x.detach()
        with InputGradient(model) as gradient, torch.no_grad():
            if self.random_start:
                x_adv = norm.random_start(
                    x, eps=eps, bounds=bounds, generator=generator, sample_ids=sample_ids
                )
            else:
                x_adv = x.clone()
            best = self.keeper() if self.keep == "best" else None
            for _ in range(self.steps):
                grad, loss, _logits = gradient(x_adv, y)
                if best:
                    best.update(x_adv, loss)
                norm.step_(x_adv, grad, x, eps=eps, step_size=step_size, bounds=bounds)
            if best:
                loss, _logits = gradient.evaluate(x_adv, y)
                x_adv = best.update(x_adv, loss)
            return AttackResult(x_adv, gradient.cost)


class Best:
    """The iterate of highest loss, kept for each image on its own."""

    def __init__(self) -> None:
        self.images: Tensor | None = None
        self.loss: Tensor | None = None

    def update(self, x_adv: Tensor, loss: Tensor) -> Tensor:
        """Let `x_adv` (B, ...) with `loss` (B,) compete; returns the best so far."""
        if self.images is None or self.loss is None:
            self.images, self.loss = x_adv.clone(), loss.clone()
            return self.images
        better = self.better(loss, self.loss)
        self.loss = torch.where(better, loss, self.loss)
        mask = better.view(-1, *[1] * (x_adv.ndim - 1))
        self.images = torch.where(mask, x_adv, self.images)
        return self.images

    def better(self, loss: Tensor, kept: Tensor) -> Tensor:
        """bool (B,): where the new iterate takes the place of the kept one."""
        return (loss > kept) | kept.isnan()  # a NaN never hides a number
