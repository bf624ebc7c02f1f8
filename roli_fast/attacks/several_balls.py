"""What attacks in several norms have in common: their fields, and how they follow a threat."""

from collections.abc import Iterable
from dataclasses import replace
from typing import TypeVar

from roli_fast.attacks.base import Attack, AttackInputs, Ball, check_radii
from roli_fast.errors import ArgumentError, ArgumentTypeError, describe
from roli_fast.norms import NORMS
from roli_fast.threat import (
    Bounds,
    ThreatModel,
    check_bounds,
    check_images,
    check_positive,
    check_radius,
    plain_number,
    plain_numbers,
)

USUAL_NORMS = ("linf", "l2", "l1")
"""The norms whose balls multi-norm papers attack."""

SeveralBallsT = TypeVar("SeveralBallsT", bound="SeveralBalls")


class SeveralBalls(Attack):
    """An attack that may end in any of several balls: its subclasses have norms, eps and bounds."""

    norms: tuple[str, ...] | None
    eps: tuple[float, ...] | None
    bounds: Bounds | None

    def check_balls(self) -> None:
        """Raise unless norms, eps and bounds are usable or None; lists become tuples."""
        plain_numbers(self)
        for name in ("norms", "eps"):
            object.__setattr__(self, name, _tuple(name, getattr(self, name)))
        if self.norms is not None:
            self._check_norms(self.norms)
        for eps in self.eps or ():
            check_positive("eps", eps, zero=True)
        if self.eps is not None:
            self._check_number(self.eps)
        if self.bounds is not None:
            check_bounds(self.bounds)
            for norm, eps in zip(self.norms or (), self.eps or (), strict=False):
                check_radius(norm, eps, self.bounds)

    def _check_norms(self, norms: tuple[str, ...]) -> None:
        for norm in norms:
            if norm not in NORMS:
                expected = f"each one of: {', '.join(NORMS)}"
                raise ArgumentError(describe("norms", expected, repr(norm)))
        if not norms or len(set(norms)) < len(norms):
            raise ArgumentError(describe("norms", "one or more different norms", norms))

    def _check_number(self, eps: tuple[float, ...]) -> None:
        if not eps or self.norms is not None and len(eps) != len(self.norms):
            norms = self.norms or ()
            got = f"{len(eps)} for {len(norms)} ({', '.join(norms) or 'none'})"
            fix = "Write them in the order of the norms: norms linf,l1 and eps 8/255,12."
            raise ArgumentError(describe("eps", "one radius for each norm", got, fix))

    def under(self: SeveralBallsT, threat: ThreatModel) -> SeveralBallsT:
        """The same attack with every field that is None taken from all norms of `threat`.

        Raises:
            ArgumentError: `norms` is given, `eps` is not, and the threat has no such norm.
        """
        norms = self.norms or tuple(each.norm for each in threat.each)
        eps = self.eps or tuple(threat.radius(norm) for norm in norms)
        bounds = self.bounds or threat.bounds
        return self._with(norms=norms, eps=eps, bounds=bounds)

    def notes(self) -> tuple[str, ...]:
        """What a result says of radii that were not given."""
        return tuple(note for ball in self._given().values() for note in ball.notes)

    def only(self: SeveralBallsT, *norms: str) -> SeveralBallsT:
        """The same attack in these of its norms alone, in this order.

        Raises:
            ArgumentError: a norm that has no eps here.
        """
        radii = {norm: ball.eps for norm, ball in self._given().items()}
        for norm in norms:
            if norm not in radii:
                expected = f"norms that the attack has ({', '.join(radii)})"
                fix = "Add it and its radius to the attack's norms and eps, or to the threat's."
                got = f"{norm!r}, which has no eps"
                raise ArgumentError(describe("norms", expected, got, fix))
        return self._with(norms=norms, eps=tuple(radii[norm] for norm in norms))

    def _with(self: SeveralBallsT, **fields: object) -> SeveralBallsT:
        return replace(self, **fields)  # pyright: ignore - a dataclass in every subclass

    def _given(self) -> dict[str, Ball]:
        if self.norms is None or self.bounds is None:
            values = {"norms": self.norms, "bounds": self.bounds}
            missing = ", ".join(name for name, value in values.items() if value is None)
            fix = "Set it, or call `.under(ThreatModel(...))` first."
            raise ArgumentError(describe(missing, "a value", None, fix))
        if self.eps is None:
            return {norm: Ball.usual(norm, self.bounds) for norm in self.norms}
        radii = zip(self.norms, self.eps, strict=True)
        return {norm: Ball(NORMS[norm], eps, self.bounds) for norm, eps in radii}

    def balls(self, inputs: AttackInputs) -> tuple[dict[str, Ball], AttackInputs]:
        """The ball of each norm, in the order of `norms`, and the inputs with `x` as `check_images`
        returns it.

        Raises:
            ArgumentError: norms or bounds are still None; images outside the bounds; a radius
                larger than any distance in the box.
        """
        balls = self._given()
        x = check_images(inputs.x, next(iter(balls.values())).bounds)
        for norm, ball in balls.items():
            if self.eps is not None:
                check_radii(ball.eps, x, norm, ball.bounds)
        return balls, replace(inputs, x=x)


def _tuple(name: str, value: object) -> tuple | None:
    """A list of YAML as a tuple, which can be hashed."""
    if value is None:
        return value
    if isinstance(value, str) or not isinstance(value, Iterable):
        fix = "Write a tuple, also of one."
        raise ArgumentTypeError(describe(name, "one value for each norm", repr(value), fix))
    return plain_number(tuple(value))
