"""torchattacks' gradient attacks: all of them are `roli_fast.PGD` with other fields."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor

from roli_fast import ops
from roli_fast.attacks import PGD as OurPGD
from roli_fast.attacks import AttackResult
from roli_fast.attacks.base import Ball, Radius
from roli_fast.attacks.passes import Samples
from roli_fast.compat.peers import beside
from roli_fast.compat.torchattacks.attack import Attack, arguments
from roli_fast.engine.input_gradient import Model
from roli_fast.errors import ArgumentError, ArgumentTypeError, describe

READ = {
    **dict(alpha="step_size", steps="steps", random_start="random_start"),
    **dict(decay="momentum", eot_iter="eot", loss="loss"),
}
"""torchattacks' attributes -> PGD's fields."""
NATIVE_RULES = {"targeted(random)": "random", "targeted(least-likely)": "least_likely"}


def radius_of(eps: Radius, images: Tensor) -> tuple[float, Tensor | None]:
    """The field and the argument of a call that stand for `eps`: a number, 0 too, or (B,)."""
    if isinstance(eps, Tensor):
        return 1.0, eps.to(images.device)
    if eps == 0:
        return 1.0, torch.zeros(len(images), device=images.device)
    return eps, None


def need(labels: Tensor | None) -> Tensor:
    """Labels, or an error that says they are missing."""
    if labels is None:
        raise ArgumentTypeError(describe("labels", "labels (B,), int64", None))
    return labels


class GradientAttack(Attack):
    """An attack that is PGD.

    Args:
        name: the attack's.
        model: images (B, ...) -> logits (B, C).
        attributes: eps, a number or one a sample (B,), and what PGD's other fields are read from.
    """

    fixed: ClassVar[dict[str, Any]] = {"norm": "linf"}
    """PGD's fields that no attribute stands for."""

    def __init__(self, name: str, model: Model, **attributes: Any) -> None:
        super().__init__(name, model, **attributes)
        self.supported_mode = ["default", "targeted"]

    def fields(self) -> dict[str, Any]:
        """PGD's fields but eps and targets, from the attributes."""
        given = self.given(READ)
        if "random_start" in given:
            given["random_start"] = bool(self.random_start)
        return self.fixed | given

    def build(self, **more: Any) -> OurPGD:
        """The attack behind it."""
        return OurPGD(**self.fields(), **more)

    def search(
        self, images: Tensor, labels: Tensor | None, sample_ids: Tensor | None = None
    ) -> AttackResult:
        """One call of PGD."""
        labels, model = need(labels), self.view()
        field, radius = radius_of(self.eps, images)
        rule, target = self._aim(images, labels)
        attack = self.build(eps=field, targets=rule)
        return attack.run(
            model,
            images,
            labels if target is None else beside(labels, target),
            self.generator,
            sample_ids=sample_ids,
            eps=radius,
            target=target,
        )

    def _aim(self, images: Tensor, labels: Tensor) -> tuple[str | None, Tensor | None]:
        """PGD's own rule for the targets, or the targets; neither without targets."""
        if not self.targeted:
            return None, None
        rule = NATIVE_RULES.get(self.attack_mode)
        if rule == "least_likely" and self._kth_min > 1:
            rule = None
        if rule is None or self.overrides("get_target_label", Attack):
            return None, self.get_target_label(images, labels)
        return rule, None


class FGSM(GradientAttack):
    """One step of length eps; targeted too."""

    fixed = dict(norm="linf", step_size=1.0, steps=1, random_start=False)  # projected back

    def __init__(self, model: Model, eps: Radius = 8 / 255) -> None:
        super().__init__("FGSM", **arguments(locals()))


class BIM(GradientAttack):
    """PGD from the image itself; `steps=0` takes the number that the paper has for eps."""

    fixed = dict(norm="linf", random_start=False)

    def __init__(
        self, model: Model, eps: Radius = 8 / 255, alpha: float = 2 / 255, steps: int = 10
    ) -> None:
        super().__init__("BIM", **arguments(locals()))
        if steps == 0 and not isinstance(eps, Tensor):
            self.steps = int(min(eps * 255 + 4, 1.25 * eps * 255))


class FFGSM(GradientAttack):
    """FGSM from a random start, projected back."""

    fixed = dict(norm="linf", steps=1)

    def __init__(self, model: Model, eps: Radius = 8 / 255, alpha: float = 10 / 255) -> None:
        super().__init__("FFGSM", **arguments(locals()))


class PGD(GradientAttack):
    """PGD in linf."""

    def __init__(
        self,
        model: Model,
        eps: Radius = 8 / 255,
        alpha: float = 2 / 255,
        steps: int = 10,
        random_start: bool = True,
    ) -> None:
        super().__init__("PGD", **arguments(locals()))


class EOTPGD(GradientAttack):
    """PGD whose gradients are means of `eot_iter` passes."""

    def __init__(  # noqa: PLR0913 - torchattacks' arguments
        self,
        model: Model,
        eps: Radius = 8 / 255,
        alpha: float = 2 / 255,
        steps: int = 10,
        eot_iter: int = 2,
        random_start: bool = True,
    ) -> None:
        super().__init__("EOTPGD", **arguments(locals()))


class PGDL2(GradientAttack):
    """PGD in l2. `eps_for_division` has no effect: a zero gradient makes no step here."""

    fixed = dict(norm="l2")

    def __init__(  # noqa: PLR0913 - torchattacks' arguments
        self,
        model: Model,
        eps: Radius = 1.0,
        alpha: float = 0.2,
        steps: int = 10,
        random_start: bool = True,
        eps_for_division: float = 1e-10,
    ) -> None:
        super().__init__("PGDL2", **arguments(locals()))

    def fields(self) -> dict[str, Any]:
        """Once they are checked."""
        if not 0 <= self.eps_for_division <= 1e-6:
            expected = "a number too small to matter, up to 1e-6"
            raise ArgumentError(describe("eps_for_division", expected, self.eps_for_division))
        return super().fields()


class MIFGSM(GradientAttack):
    """PGD with momentum, from the image itself."""

    fixed = dict(norm="linf", random_start=False)

    def __init__(
        self,
        model: Model,
        eps: Radius = 8 / 255,
        alpha: float = 2 / 255,
        steps: int = 10,
        decay: float = 1.0,
    ) -> None:
        super().__init__("MIFGSM", model, eps=eps, steps=steps, decay=decay, alpha=alpha)


class UPGD(GradientAttack):
    """PGD with momentum, loss "ce", "dlr" or "margin", and EOT; `loss` as a callable is refused."""

    unread = Attack.unread | {"get_loss", "ce_loss", "dlr_loss", "margin_loss"}

    def __init__(  # noqa: PLR0913 - torchattacks' arguments
        self,
        model: Model,
        eps: Radius = 8 / 255,
        alpha: float = 2 / 255,
        steps: int = 10,
        random_start: bool = False,
        loss: str = "ce",
        decay: float = 1.0,
        eot_iter: int = 1,
    ) -> None:
        super().__init__("UPGD", **arguments(locals()))

    def fields(self) -> dict[str, Any]:
        """Once they are checked."""
        if self.loss not in ("ce", "dlr", "margin"):
            raise ArgumentError(describe("loss", "'ce', 'dlr' or 'margin'", repr(self.loss)))
        if self.loss == "dlr" and self.attack_mode == "targeted(label)":
            fix = "The dlr of a target needs the label too: take a function as the mode."
            raise ArgumentError(describe("loss", "'ce' or 'margin'", "'dlr'", fix))
        return super().fields()


class TPGD(GradientAttack):
    """TRADES' attack: away from the clean logits in KL. It needs no labels."""

    fixed = dict(norm="linf", loss="kl")

    def __init__(
        self, model: Model, eps: Radius = 8 / 255, alpha: float = 2 / 255, steps: int = 10
    ) -> None:
        super().__init__("TPGD", **arguments(locals()))
        self.supported_mode = ["default"]

    def build(self, **more: Any) -> OurPGD:
        """With TRADES' start."""
        return _TradesPGD(**self.fields(), **more)

    def search(
        self, images: Tensor, labels: Tensor | None, sample_ids: Tensor | None = None
    ) -> AttackResult:
        """Labels play no part."""
        anything = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        return super().search(images, anything, sample_ids)


@dataclass(frozen=True)
class _TradesPGD(OurPGD):
    """PGD that starts beside the image, where the KL's gradient is not zero."""

    def _start(self, samples: Samples, ball: Ball, generator: Generator | None) -> Tensor:
        """Every entry moves by 0.001 (standard deviation), as in TRADES.

        Uniform in an l2 ball of D dimensions, whose entries are Gaussian as nearly as matters.
        """
        radius = 0.001 * math.sqrt(samples.x[:1].numel() + 2)
        return ops.l2_random_start(
            samples.x,
            eps=radius,
            bounds=ball.bounds,
            generator=generator,
            sample_ids=samples.ids,
        )
