"""What every attack has in common, and the table of all attacks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import partial
from numbers import Integral
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Generator, Tensor

from roli_fast.engine import Cost, Engine, InputGradient, bound
from roli_fast.engine.input_gradient import Model
from roli_fast.errors import ArgumentError, ArgumentTypeError, describe, is_number
from roli_fast.losses import Loss, cross_entropy
from roli_fast.norms import NORMS, Norm
from roli_fast.ops.fused import check_tensor
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
        start_grad: of a single step, the loss's gradient at its start, like x.
    """

    x_adv: Tensor
    cost: Cost
    fooled: Tensor | None = None
    notes: tuple[str, ...] = ()
    start_grad: Tensor | None = field(default=None, kw_only=True)  # others add fields by place


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


def check_steps(name: str, value: object) -> None:
    """Raise unless `value` is an integer of at least 1."""
    if not is_number(value, Integral) or value < 1:  # type: ignore[operator]
        raise ArgumentError(describe(name, "an integer >= 1", repr(value)))


def check_within(low: float, high: float, name: str, value: object) -> None:
    """Raise unless `value` is a number from `low` to `high`."""
    if not is_number(value) or not low <= value <= high:  # type: ignore[operator]
        raise ArgumentError(describe(name, f"a number in [{low}, {high}]", repr(value)))


FIELDS: dict[str, Callable[[str, Any], None]] = {
    **dict.fromkeys(("steps", "l1_steps", "n_queries", "restarts", "eot"), check_steps),
    **dict.fromkeys(("step_size", "rho", "step", "noise", "width"), check_positive),
    "momentum": partial(check_positive, zero=True),
    **dict.fromkeys(("density", "p_init", "alpha_max", "beta"), partial(check_within, 0, 1)),
    "eta": partial(check_within, 1, 2),
}
"""Field of any attack -> what raises unless the value is usable. A default of None always is."""


class Attack:
    """Base of all attacks. A subclass is a frozen dataclass: its fields are its configuration."""

    def __post_init__(self) -> None:
        """Raise for a field of `FIELDS` that is not usable; NumPy's numbers become Python's."""
        plain_numbers(self)
        for own in fields(self):  # pyright: ignore[reportArgumentType]
            value = getattr(self, own.name)
            if own.name in FIELDS and not (value is None is own.default):
                FIELDS[own.name](own.name, value)

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

    def at(self, share: float) -> "Attack":
        """The same attack at `share` of its radius, in every norm that it has; a step size that is
        given follows in proportion."""
        if share == 1:
            return self
        given = {name: getattr(self, name, None) for name in ("eps", "step_size")}
        scaled: dict[str, Any] = {
            name: tuple(share * one for one in v) if isinstance(v, tuple) else share * v
            for name, v in given.items()
            if v is not None
        }
        return replace(self, **scaled)  # pyright: ignore[reportArgumentType]

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
            target: classes (B,) to aim at, int64, none of them the label, for PGD, APGD, FAB, CW
                and Square.

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
    def of(cls, norm: str, eps: Radius | None, bounds: Bounds, x: Tensor) -> "Ball":
        """The ball around images like `x` (B, ...). Without an eps it is the norm's usual one, and
        a note says so.

        Raises:
            ArgumentError: an `eps` that is negative, NaN, larger than any distance in the box, or
                not one number a sample (one host sync).
        """
        if eps is None:
            eps = usual_eps(norm, bounds)
            note = f"eps was not given: {eps:.4g} was taken, the usual radius in {norm}"
            return cls(NORMS[norm], eps, bounds, (note,))
        if isinstance(eps, Tensor):
            check_tensor("eps", eps, shape=x.shape[:1], device=x.device)
            least, largest = torch.stack(eps.aminmax()).tolist() if len(eps) else (0.0, 0.0)
        else:
            least = largest = eps
        check_positive("eps", least, zero=True)
        check_radius(norm, largest, bounds, x.shape[1:].numel())
        return cls(NORMS[norm], eps, bounds)


def check_ball(norm: str | None, eps: float | None, bounds: Bounds | None) -> None:
    """Raise unless norm, eps and bounds are usable or None."""
    if norm is not None:
        NORMS[norm]
    if bounds is not None:
        check_bounds(bounds)
    if eps is not None:
        check_positive("eps", eps, zero=True)
        if norm is not None and bounds is not None:
            check_radius(norm, eps, bounds)


def check_given(**values: object) -> None:
    """Raise where a field that a threat may fill is still None."""
    missing = ", ".join(name for name, value in values.items() if value is None)
    if missing:
        fix = "Set it, or call `.under(ThreatModel(...))` first."
        raise ArgumentError(describe(missing, "a value", None, fix))


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
        super().__post_init__()
        check_ball(self.norm, self.eps, self.bounds)

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

        Raises:
            ArgumentError: norm or bounds are still None; images outside the bounds; an `eps` as
                `Ball.of` says.
        """
        check_given(norm=self.norm, bounds=self.bounds)
        assert self.norm is not None and self.bounds is not None
        x = check_images(inputs.x, self.bounds)
        eps = plain_number(self.eps if inputs.eps is None else inputs.eps)
        ball = Ball.of(self.norm, eps, self.bounds, x)
        return ball, replace(inputs, x=x, eps=ball.eps)


ATTACKS: Registry[type[Attack]] = Registry("attack")
