"""APGD, APGD-T, FAB and Square with torchattacks' interface."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Literal

from torch import Generator, Tensor

from roli_fast import attacks as ours
from roli_fast.attacks import AttackResult
from roli_fast.attacks.auto_attack import VERSIONS
from roli_fast.attacks.base import Radius
from roli_fast.compat.original_draws import OriginalAutoAttack, with_original_draws
from roli_fast.compat.torchattacks.attack import Attack, arguments, logger
from roli_fast.compat.torchattacks.gradient import need, radius_of
from roli_fast.engine.input_gradient import Model
from roli_fast.errors import ArgumentError, describe

READ = {
    **dict(steps="steps", n_restarts="restarts", loss="loss", eot_iter="eot", thr_decr="rho"),
    **dict(n_target_classes="targets", alpha_max="alpha_max", eta="eta", beta="beta"),
    **dict(n_queries="n_queries", p_init="p_init", rescale_schedule="rescale_schedule"),
    **dict(version="version"),
}
"""torchattacks' attributes -> our fields."""
NORMS = {"Linf": "linf", "L2": "l2", "L1": "l1"}
FAB_EPS = {"Linf": 0.3, "L2": 1.0, "L1": 5.0}


def our_norm(norm: str) -> str:
    """Our name of a norm."""
    if norm not in NORMS:
        raise ArgumentError(describe("norm", " or ".join(map(repr, NORMS)), repr(norm)))
    return NORMS[norm]


class Search(Attack):
    """An attack with a seed, which draws the same at each call.

    Attributes of all: `norm` "Linf", "L2" or "L1"; `eps` the radius, a number or one a sample (B,);
    `seed` of the draws, None takes `generator`, or torch's global generator; `verbose` logs what
    each call found.
    """

    unread = Attack.unread | {
        *("perturb", "attack_single_run", "attack_single_run_targeted", "check_oscillation"),
        *("check_shape", "dlr_loss", "dlr_loss_targeted", "target_class", "_get_predicted_label"),
        *("get_diff_logits_grads_batch", "get_diff_logits_grads_batch_targeted"),
    }
    kind: Any
    """What it is here."""

    rng: Literal["native", "official"] = "native"
    """ "official" repeats the original's draws, which depend on the batch."""

    def __init__(self, name: str, model: Model, **attributes: Any) -> None:
        our_norm(attributes["norm"])
        super().__init__(name, model, **attributes, _told=set())

    def build(self, **more: Any) -> ours.Attack:
        """The attack behind it."""
        return self.kind(**self.given(READ), **more)

    def search(
        self, images: Tensor, labels: Tensor | None, sample_ids: Tensor | None = None
    ) -> AttackResult:
        """One call."""
        field, radius = radius_of(self.eps, images)
        attack = self.build(norm=our_norm(self.norm), eps=field)
        if self.rng == "official":
            if self.seed is None:
                raise ArgumentError(describe("seed", "a seed with rng='official'", None))
            attack = self.originally(attack, self.seed)
        generator = self.generator
        if self.seed is not None:
            generator = Generator(images.device).manual_seed(self.seed)
        options: Any = {"sample_ids": sample_ids, "eps": radius}
        result = attack.run(self.view(), images, need(labels), generator, **options)
        if self.verbose and result.fooled is not None:
            fooled, cost = int(result.fooled.sum()), result.cost
            passes = (cost.forwards, cost.backwards)
            text = "%s: %d of %d images fool, %d forwards and %d backwards"
            logger.info(text, attack.label, fooled, len(images), *passes)
        for note in result.notes:
            self._tell(note)
        return result

    def _tell(self, note: str) -> None:
        """Of a loss or a number of targets that the model's classes do not allow: once."""
        if note not in self._told:
            self._told.add(note)
            logger.warning("%s: %s", self.attack, note)

    def originally(self, attack: ours.Attack, seed: int) -> ours.Attack:
        """The attack with the original's draws."""
        return with_original_draws(attack, seed)


class APGD(Search):
    """APGD on "ce" or "dlr" (or "margin"). `steps` is 10 here; AutoAttack has 100."""

    kind = ours.APGD

    def __init__(  # noqa: PLR0913 - torchattacks' arguments
        self,
        model: Model,
        norm: str = "Linf",
        eps: Radius = 8 / 255,
        steps: int = 10,
        n_restarts: int = 1,
        seed: int | None = 0,
        loss: str = "ce",
        eot_iter: int = 1,
        rho: float = 0.75,
        verbose: bool = False,
    ) -> None:
        super().__init__("APGD", **arguments(locals()))


class APGDT(Search):
    """APGD-T towards the n_classes - 1 likeliest wrong classes, all that the model has at most."""

    kind = ours.APGDT

    def __init__(  # noqa: PLR0913 - torchattacks' arguments
        self,
        model: Model,
        norm: str = "Linf",
        eps: Radius = 8 / 255,
        steps: int = 10,
        n_restarts: int = 1,
        seed: int | None = 0,
        eot_iter: int = 1,
        rho: float = 0.75,
        verbose: bool = False,
        n_classes: int = 10,
    ) -> None:
        given = arguments(locals(), "n_classes")
        super().__init__("APGDT", n_target_classes=n_classes - 1, **given)


class FAB(Search):
    """FAB, or FAB-T with `multi_targeted`, which alone looks at `n_classes`.

    eps=None takes 0.3, 1 or 5 in Linf, L2 or L1.
    """

    def __init__(  # noqa: PLR0913 - torchattacks' arguments
        self,
        model: Model,
        norm: str = "Linf",
        eps: Radius | None = 8 / 255,
        steps: int = 10,
        n_restarts: int = 1,
        alpha_max: float = 0.1,
        eta: float = 1.05,
        beta: float = 0.9,
        verbose: bool = False,
        seed: int | None = 0,
        multi_targeted: bool = False,
        n_classes: int = 10,
    ) -> None:
        our_norm(norm)
        eps = FAB_EPS[norm] if eps is None else eps
        given = arguments(locals(), "n_classes")
        super().__init__("FAB", n_target_classes=n_classes - 1, **given)

    @property
    def kind(self) -> Callable[..., ours.Attack]:
        """With targets or without."""
        return ours.FABT if self.multi_targeted else _untargeted_fab


class Square(Search):
    """Square attack."""

    kind = ours.Square

    unread = Search.unread | {
        *("eta", "eta_rectangles", "init_hyperparam", "lp_norm", "margin_and_loss"),
        *("normalize_delta", "p_selection", "random_choice", "random_int"),
    }

    def __init__(  # noqa: PLR0913 - torchattacks' arguments
        self,
        model: Model,
        norm: str = "Linf",
        eps: Radius = 8 / 255,
        n_queries: int = 5000,
        n_restarts: int = 1,
        p_init: float = 0.8,
        loss: str = "margin",
        resc_schedule: bool = True,
        seed: int | None = 0,
        verbose: bool = False,
    ) -> None:
        super().__init__("Square", **arguments(locals()))


class AutoAttack(Search):
    """AutoAttack with the authors' 100 steps and 5,000 queries, version standard, plus or rand.

    `n_classes` other than 10 gives APGD-T and FAB-T n_classes - 1 targets, as theirs. seed=None
    draws anew at each call.
    """

    unread = Search.unread | {"get_seed", "_autoattack"}

    def __init__(  # noqa: PLR0913 - torchattacks' arguments
        self,
        model: Model,
        norm: str = "Linf",
        eps: Radius = 8 / 255,
        version: str = "standard",
        n_classes: int = 10,
        seed: int | None = None,
        verbose: bool = False,
    ) -> None:
        if version not in VERSIONS:
            raise ArgumentError(describe("version", " or ".join(map(repr, VERSIONS)), version))
        super().__init__("AutoAttack", **arguments(locals()))

    @property
    def kind(self) -> Callable[..., ours.Attack]:
        """The authors' targets, or so many as are asked for."""
        if self.n_classes == 10:
            return ours.AutoAttack
        return partial(_TargetsAutoAttack, targets=self.n_classes - 1)

    def originally(self, attack: ours.Attack, seed: int) -> ours.Attack:
        """The same also for other numbers of targets."""
        if isinstance(attack, _TargetsAutoAttack):
            settings = {field.name: getattr(attack, field.name) for field in fields(attack)}
            return _OriginalTargetsAutoAttack(**settings, seed=seed)
        return super().originally(attack, seed)

    def _tell(self, note: str) -> None:
        """It warns by itself; what else it notes is how many images each part fooled."""
        logger.log(logging.INFO if self.verbose else logging.DEBUG, "AutoAttack: %s", note)


def _untargeted_fab(targets: int, **fields: Any) -> ours.Attack:
    return ours.FAB(**fields)


@dataclass(frozen=True)
class _TargetsAutoAttack(ours.AutoAttack):
    """AutoAttack with so many targets of APGD-T and FAB-T."""

    targets: int = 9

    def part(self, name: str, more: dict[str, Any]) -> ours.Attack:
        """With these targets."""
        if name in ("apgd-t", "fab-t"):
            more = more | {"targets": self.targets}
        return super().part(name, more)


@dataclass(frozen=True)
class _OriginalTargetsAutoAttack(_TargetsAutoAttack, OriginalAutoAttack):
    """The same with the original's draws."""
