"""What every attack has in common, and the table of all attacks."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Generator, Tensor

from roli_fast.engine import Cost, Engine, InputGradient, bound
from roli_fast.engine.input_gradient import Model
from roli_fast.errors import ArgumentError, ArgumentTypeError, describe, is_number
from roli_fast.errors import check_choice as check_choice
from roli_fast.losses import Loss, cross_entropy
from roli_fast.norms import NORMS, Norm
from roli_fast.registry import Registry
from roli_fast.threat import (
    Bounds,
    ThreatModel,
    check_bounds,
    check_images,
    check_positive,
    check_radius,
    plain_number,
    plain_numbers,
    usual_eps,
)

Radius = float | Tensor
"""A number, or one a sample: (B,)."""


@dataclass(frozen=True)
class AttackResult:
    """What a search found.

    Args:
        x_adv: images like x.
        cost: the passes that the search cost.
        fooled: bool (B,), whether `x_adv` does what the attack is after, by the logits that the
            search saw; None where the attack never looks.
        notes: what the user should know, "loss dlr needs 4 classes, ..." say.
    """

    x_adv: Tensor
    cost: Cost
    fooled: Tensor | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class AttackInputs:
    """What an attack is asked: the arguments of `Attack.run`, which documents them."""

    model: Model
    x: Tensor
    y: Tensor
    generator: Generator | None = None
    engine: Engine | None = None
    sample_ids: Tensor | None = None
    eps: Radius | None = None
    target: Tensor | None = None

    @property
    def ids(self) -> Tensor:
        """The samples' ids (B,): as given, or their places in the batch."""
        if self.sample_ids is not None:
            return self.sample_ids
        return torch.arange(len(self.x), device=self.x.device)

    @contextmanager
    def gradient(self, loss: Loss = cross_entropy) -> Iterator[InputGradient]:
        """The model's passes through its engine; nothing around them is recorded."""
        with InputGradient(bound(self.model, self.engine), loss) as gradient, torch.no_grad():
            yield gradient

    def at(self, rows: Tensor) -> "AttackInputs":
        """The same of these samples alone, which keep their ids."""
        some = {"x": self.x, "y": self.y, "eps": self.eps, "target": self.target}
        taken = {k: v[rows] if isinstance(v, Tensor) else v for k, v in some.items()}
        return replace(self, sample_ids=self.ids[rows], **taken)


class Attack:
    """Base of all attacks. A subclass is a frozen dataclass: its fields are its configuration."""

    options: ClassVar[tuple[str, ...]] = ()
    """Which of the arguments `eps` and `target` of `run` it takes."""

    @property
    def reach(self) -> float:
        """How far from x a result may be, in multiples of eps."""
        return 1.0

    @property
    def label(self) -> str:
        """The name used in tables and metrics, "pgd-10" say."""
        raise NotImplementedError

    @property
    def parts(self) -> tuple["Attack", ...]:
        """The searches it is made of, each for the samples that those before left right: what an
        evaluation reports and saves one by one. One search is its own part."""
        return (self,)

    def under(self, threat: ThreatModel) -> "Attack":
        """The same attack with every field that is None taken from `threat`."""
        raise NotImplementedError

    def search(self, inputs: AttackInputs) -> AttackResult:
        """What `run` does once its arguments are one value: here a subclass says how it works."""
        raise NotImplementedError

    def run(  # noqa: PLR0913 - the one place where a call's arguments stand
        self,
        model: Model,
        x: Tensor,
        y: Tensor,
        generator: Generator | None = None,
        *,
        engine: Engine | None = None,
        sample_ids: Tensor | None = None,
        eps: Radius | None = None,
        target: Tensor | None = None,
    ) -> AttackResult:
        """Adversarial images for a batch, and what they cost.

        Args:
            model: images (B, ...) -> logits (B, C). It is attacked in eval mode with frozen
                parameters and given back exactly as it was. `Engine.bind` makes one that has its
                engine with it.
            x: images (B, ...) inside the bounds, before normalisation. Pixels a few roundings
                beyond a bound are set to it first.
            y: labels (B,), int64.
            generator: source of the draws; None takes torch's global generator.
            engine: how the model's passes are made; None takes the model's own where it is bound to
                one, else `Engine()`.
            sample_ids: int64 (B,); what is drawn for a sample depends on one draw of the generator
                and on its id alone. None takes its index in the batch.
            eps: radius in place of the field, a number or one a sample (B,), for attacks in one
                norm.
            target: classes (B,) to aim at, int64, none of them the label, for PGD and Square.

        Returns:
            New images like `x`, inside the ball around `x` and inside the bounds, with the cost,
            and, where the attack looks, who is fooled.

        Raises:
            ArgumentError: images outside the bounds, labels out of range, a bound model beside an
                engine, and the like.
            ArgumentTypeError: also an `eps` or a `target` for an attack that takes none.
        """
        for name, value in (("eps", eps), ("target", target)):
            if value is not None and name not in self.options:
                expected = f"None, for {self.label} takes no {name} in a call"
                raise ArgumentTypeError(describe(name, expected, repr(value)))
        return self.search(AttackInputs(model, x, y, generator, engine, sample_ids, eps, target))

    def __call__(
        self, model: Model, x: Tensor, y: Tensor, generator: Generator | None = None, **more: Any
    ) -> Tensor:
        """The images alone of `run`, which has the same arguments."""
        return self.run(model, x, y, generator, **more).x_adv


class Ball(NamedTuple):
    """Where one call may search."""

    norm: Norm
    eps: Radius
    bounds: Bounds
    notes: tuple[str, ...] = ()

    @classmethod
    def usual(cls, norm: str, bounds: Bounds) -> "Ball":
        """The ball of a norm for which no eps was given; a note says so."""
        eps = usual_eps(norm, bounds)
        note = f"eps was not given: {eps:.4g} was taken, the usual radius in {norm}"
        return cls(NORMS[norm], eps, bounds, (note,))


BallAttackT = TypeVar("BallAttackT", bound="BallAttack")


@dataclass(frozen=True)
class BallAttack(Attack):
    """Base of attacks inside one ball.

    Args:
        norm: "linf", "l2" or "l1"; null in a run's configuration takes the run's threat model.
        eps: radius; null takes the norm's usual one (8/255, 0.5, 12 in [0, 1] images), which the
            result then notes, and in a run that of the run's threat model.
        bounds: lowest and highest valid pixel; null takes the run's threat model.
    """

    options = ("eps",)

    norm: str | None = "linf"
    eps: float | None = None
    bounds: Bounds | None = field(default=(0.0, 1.0), kw_only=True)

    def __post_init__(self) -> None:
        """Raise unless norm, eps and bounds are usable or None; NumPy's numbers become Python's."""
        plain_numbers(self)
        if self.norm is not None:
            NORMS[self.norm]
        if self.bounds is not None:
            check_bounds(self.bounds)
        if self.eps is not None:
            check_positive("eps", self.eps, zero=True)
            if self.norm is not None and self.bounds is not None:
                check_radius(self.norm, self.eps, self.bounds)

    def under(self: BallAttackT, threat: ThreatModel) -> BallAttackT:
        """The same attack with every field that is None taken from `threat`.

        An attack with a norm takes that norm's radius.

        Raises:
            ArgumentError: the threat has no radius in this norm.
        """
        norm = self.norm or threat.norm
        eps = threat.radius(norm) if self.eps is None else self.eps
        return replace(self, norm=norm, eps=eps, bounds=self.bounds or threat.bounds)

    def ball(self, inputs: AttackInputs) -> tuple[Ball, AttackInputs]:
        """The ball of one call, and the inputs with its radius and with `x` as `check_images`
        returns it.

        Without an eps in the inputs or in the field it is the norm's usual one.

        Raises:
            ArgumentError: norm or bounds are still None; images outside the bounds; an `eps` that
                is negative, NaN, larger than any distance in the box, or not one number a sample.
        """
        if self.norm is None or self.bounds is None:
            values = {"norm": self.norm, "bounds": self.bounds}
            missing = ", ".join(name for name, value in values.items() if value is None)
            fix = "Set it, or call `.under(ThreatModel(...))` first."
            raise ArgumentError(describe(missing, "a value", None, fix))
        x = check_images(inputs.x, self.bounds)
        radius = plain_number(self.eps if inputs.eps is None else inputs.eps)
        if radius is None:
            ball = Ball.usual(self.norm, self.bounds)
        else:
            check_radii(radius, x, self.norm, self.bounds)
            ball = Ball(NORMS[self.norm], radius, self.bounds)
        return ball, replace(inputs, x=x, eps=ball.eps)


def check_radii(eps: Radius, x: Tensor, norm: str, bounds: Bounds) -> None:
    """Raise unless `eps` is a radius >= 0 that the bounds can hold, or one a sample where `x` is:
    one host sync."""
    size = x.shape[1:].numel()
    if not isinstance(eps, Tensor):
        check_positive("eps", eps, zero=True)
        return check_radius(norm, eps, bounds, size)
    expected = f"a number, or a floating-point tensor of shape ({len(x)},) on {x.device}"
    if eps.shape != x.shape[:1] or not eps.is_floating_point() or eps.device != x.device:
        got = f"{eps.dtype} of shape {tuple(eps.shape)} on {eps.device}"
        raise ArgumentError(describe("eps", expected, got))
    if not bool(((eps >= 0) & eps.isfinite()).all()):
        raise ArgumentError(describe("eps", "finite radii >= 0", eps.tolist()))
    if len(eps):
        check_radius(norm, eps.max().item(), bounds, size)


def check_density(value: float) -> None:
    """Raise unless `value` is a part of an image's entries."""
    if not 0 <= value <= 1:
        raise ArgumentError(describe("density", "a number in [0, 1]", value))


def check_steps(name: str, value: object) -> None:
    """Raise unless `value` is an integer of at least 1."""
    if not is_number(value, Integral) or value < 1:  # type: ignore[operator]
        raise ArgumentError(describe(name, "an integer >= 1", repr(value)))


def restart_generators(
    generator: Generator | None, count: int, device: torch.device
) -> list[Generator | None]:
    """One source of draws a restart, all seeded by one call to `generator`.

    So the caller's generator moves on by the same amount however early a search ends, and with one
    restart it is used itself.
    """
    if count == 1:
        return [generator]
    seeds = torch.randint(2**63 - 1, (count,), generator=generator, device=device).tolist()
    return [torch.Generator(device).manual_seed(seed) for seed in seeds]


ATTACKS: Registry[type[Attack]] = Registry("attack")
