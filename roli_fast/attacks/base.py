"""What every attack has in common, and the table of all attacks."""

from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Generator, Tensor

from roli_fast.engine import Cost, Engine
from roli_fast.engine.input_gradient import Model
from roli_fast.errors import ArgumentError, describe, is_number
from roli_fast.errors import check_choice as check_choice
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


class Attack:
    """Base of all attacks. A subclass is a frozen dataclass: its fields are its configuration."""

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

    def run(
        self,
        model: Model,
        x: Tensor,
        y: Tensor,
        generator: Generator | None = None,
        *,
        engine: Engine | None = None,
        sample_ids: Tensor | None = None,
    ) -> AttackResult:
        """Search, and report the cost beside the images."""
        raise NotImplementedError

    def __call__(
        self,
        model: Model,
        x: Tensor,
        y: Tensor,
        generator: Generator | None = None,
        *,
        engine: Engine | None = None,
        sample_ids: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        """Adversarial images for a batch.

        Args:
            model: images (B, ...) -> logits (B, C). It is attacked in eval mode with frozen
                parameters and given back exactly as it was. `Engine.bind` makes one that has its
                engine with it.
            x: images (B, ...) inside the bounds, before normalisation. Pixels a few roundings
                beyond a bound are set to it first.
            y: labels (B,), int64.
            generator: source of the random start; None takes torch's global generator.
            engine: how the model's passes are made; None takes the model's own where it is bound to
                one, else `Engine()`.
            sample_ids: int64 (B,); the start of a sample depends on one draw of the generator and
                on its id alone. None takes its index in the batch.
            **options: what this attack's `run` takes besides: `eps`, a number or one a sample (B,),
                in place of the field; PGD's `target`.

        Returns:
            A new tensor like `x`, inside the ball around `x` and inside the bounds.

        Raises:
            ArgumentError: images outside the bounds, labels out of range, a bound model beside an
                engine, and the like.
        """
        found = self.run(model, x, y, generator, engine=engine, sample_ids=sample_ids, **options)
        return found.x_adv


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


class BallAttack(Attack):
    """An attack inside one ball: its subclasses have the fields norm, eps and bounds."""

    norm: str | None
    eps: float | None
    bounds: Bounds | None

    def check_ball(self) -> None:
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
        return replace(
            self,  # pyright: ignore[reportArgumentType] - a dataclass in every subclass
            norm=norm,
            eps=threat.radius(norm) if self.eps is None else self.eps,
            bounds=self.bounds or threat.bounds,
        )

    def ball(self, x: Tensor, eps: Radius | None = None) -> tuple[Ball, Tensor]:
        """The ball of one call, and `x` as `check_images` returns it.

        `eps` takes the place of the field; without both it is the norm's usual one.

        Raises:
            ArgumentError: norm or bounds are still None; images outside the bounds; an `eps` that
                is negative, NaN, larger than any distance in the box, or not one number a sample.
        """
        if self.norm is None or self.bounds is None:
            values = {"norm": self.norm, "bounds": self.bounds}
            missing = ", ".join(name for name, value in values.items() if value is None)
            fix = "Set it, or call `.under(ThreatModel(...))` first."
            raise ArgumentError(describe(missing, "a value", None, fix))
        x = check_images(x, self.bounds)
        radius = plain_number(self.eps if eps is None else eps)
        if radius is None:
            return Ball.usual(self.norm, self.bounds), x
        check_radii(radius, x, self.norm, self.bounds)
        return Ball(NORMS[self.norm], radius, self.bounds), x


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


def ids_of(x: Tensor, sample_ids: Tensor | None) -> Tensor:
    """The samples' ids (B,): as given, or their places in the batch."""
    return torch.arange(len(x), device=x.device) if sample_ids is None else sample_ids


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
