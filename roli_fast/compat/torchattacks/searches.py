"""APGD, APGD-T, FAB and Square with torchattacks' interface."""

import logging
from typing import Any

from torch import Generator, Tensor

from roli_fast import attacks as ours
from roli_fast.attacks import AttackResult
from roli_fast.attacks.auto_attack import VERSIONS
from roli_fast.attacks.base import Radius
from roli_fast.attacks.official import Rng
from roli_fast.compat.torchattacks.attack import Attack, logger
from roli_fast.compat.torchattacks.gradient import need, radius_of
from roli_fast.engine.input_gradient import Model
from roli_fast.errors import ArgumentError, describe

NORMS = {"Linf": "linf", "L2": "l2", "L1": "l1"}
FAB_EPS = {"Linf": 0.3, "L2": 1.0, "L1": 5.0}


def our_norm(norm: str) -> str:
    """Our name of a norm."""
    if norm not in NORMS:
        raise ArgumentError(describe("norm", " or ".join(map(repr, NORMS)), repr(norm)))
    return NORMS[norm]


class Search(Attack):
    """An attack with a seed, which draws the same at each call.

    Args:
        name: the attack's.
        model: images (B, ...) -> logits (B, C).
        norm: "Linf", "L2" or "L1".
        eps: radius, a number or one a sample (B,).
        seed: of the draws; None takes `generator`, or torch's global generator.
        verbose: log what each call found.
    """

    rng: Rng = "native"
    """ "official" repeats the original's draws, which depend on the batch; see the attacks."""

    def __init__(  # noqa: PLR0913 - what all of them share
        self,
        name: str,
        model: Model,
        *,
        norm: str,
        eps: Radius,
        seed: int | None,
        verbose: bool,
    ) -> None:
        super().__init__(name, model)
        our_norm(norm)
        self.norm = norm
        self.eps = eps
        self.seed = seed
        self.verbose = verbose
        self._told: set[str] = set()

    def build(self, **more: Any) -> ours.Attack:
        """The attack behind it."""
        raise NotImplementedError

    def search(
        self, images: Tensor, labels: Tensor | None, sample_ids: Tensor | None = None
    ) -> AttackResult:
        """One call."""
        field, radius = radius_of(self.eps, images)
        attack = self.build(norm=our_norm(self.norm), eps=field, **self._rng())
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

    def _rng(self) -> dict[str, Any]:
        if self.rng == "official" and self.seed is None:
            raise ArgumentError(describe("seed", "a seed with rng='official'", None))
        return {"rng": self.rng, "seed": self.seed or 0}


class APGD(Search):
    """APGD on "ce" or "dlr" (or "margin"). `steps` is 10 here; AutoAttack has 100."""

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
        super().__init__("APGD", model, norm=norm, eps=eps, seed=seed, verbose=verbose)
        self.steps = steps
        self.n_restarts = n_restarts
        self.loss = loss
        self.eot_iter = eot_iter
        self.rho = rho

    def build(self, **more: Any) -> ours.Attack:
        """Name by name."""
        return ours.APGD(
            steps=self.steps,
            restarts=self.n_restarts,
            loss=self.loss,
            eot=self.eot_iter,
            rho=self.rho,
            **more,
        )


class APGDT(Search):
    """APGD-T towards the n_classes - 1 likeliest wrong classes, all that the model has at most."""

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
        super().__init__("APGDT", model, norm=norm, eps=eps, seed=seed, verbose=verbose)
        self.steps = steps
        self.n_restarts = n_restarts
        self.eot_iter = eot_iter
        self.rho = rho
        self.target_classes = n_classes - 1

    def build(self, **more: Any) -> ours.Attack:
        """Name by name."""
        return ours.APGDT(
            steps=self.steps,
            restarts=self.n_restarts,
            eot=self.eot_iter,
            rho=self.rho,
            targets=self.target_classes,
            **more,
        )


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
        radius = FAB_EPS[norm] if eps is None else eps
        super().__init__("FAB", model, norm=norm, eps=radius, seed=seed, verbose=verbose)
        self.n_restarts = n_restarts
        self.alpha_max = alpha_max
        self.eta = eta
        self.beta = beta
        self.steps = steps
        self.multi_targeted = multi_targeted
        self.target_classes = n_classes - 1

    def build(self, **more: Any) -> ours.Attack:
        """Name by name."""
        more |= {
            "steps": self.steps,
            "restarts": self.n_restarts,
            "alpha_max": self.alpha_max,
            "eta": self.eta,
            "beta": self.beta,
        }
        if self.multi_targeted:
            return ours.FABT(targets=self.target_classes, **more)
        return ours.FAB(**more)


class Square(Search):
    """Square attack."""

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
        super().__init__("Square", model, norm=norm, eps=eps, seed=seed, verbose=verbose)
        self.n_queries = n_queries
        self.p_init = p_init
        self.n_restarts = n_restarts
        self.loss = loss
        self.rescale_schedule = resc_schedule

    def build(self, **more: Any) -> ours.Attack:
        """Name by name."""
        return ours.Square(
            n_queries=self.n_queries,
            restarts=self.n_restarts,
            p_init=self.p_init,
            loss=self.loss,
            rescale_schedule=self.rescale_schedule,
            **more,
        )


class AutoAttack(Search):
    """AutoAttack with the authors' 100 steps and 5,000 queries, version standard, plus or rand.

    `n_classes` has no effect: the model's number of classes decides. seed=None draws anew at
    each call.
    """

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
        super().__init__("AutoAttack", model, norm=norm, eps=eps, seed=seed, verbose=verbose)
        if version not in VERSIONS:
            raise ArgumentError(describe("version", " or ".join(map(repr, VERSIONS)), version))
        self.version = version
        self.n_classes = n_classes

    def build(self, **more: Any) -> ours.Attack:
        """Name by name."""
        return ours.AutoAttack(version=self.version, **more)  # pyright: ignore[reportArgumentType]

    def _tell(self, note: str) -> None:
        """It warns by itself; what else it notes is how many images each part fooled."""
        logger.log(logging.INFO if self.verbose else logging.DEBUG, "AutoAttack: %s", note)
