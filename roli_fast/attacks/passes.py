"""An attack's model passes, all through the engine, and its batch of samples."""

from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar

from torch import Tensor

from roli_fast.attacks.base import Radius
from roli_fast.attacks.objective import Goal
from roli_fast.engine import InputGradient
from roli_fast.errors import ArgumentError, describe
from roli_fast.losses import cross_entropy
from roli_fast.threat import values_are_known

T = TypeVar("T")


@dataclass(frozen=True)
class Samples:
    """The samples that a search works on; every tensor in it has the batch in front.

    Args:
        x: the original images (B, ...).
        goal: what is wanted of them.
        ids: their ids (B,), by which they draw.
        eps: radius, a number or (B,).
    """

    x: Tensor
    goal: Goal
    ids: Tensor
    eps: Radius

    def __len__(self) -> int:
        return len(self.x)


def take(item: T, rows: Tensor | slice) -> T:
    """The dataclass `item` with these rows of each of its tensors, also of those in its parts.

    Indices copy, a slice gives views.
    """
    changed: dict[str, Any] = {}
    for field in fields(item):  # pyright: ignore[reportArgumentType]
        value = getattr(item, field.name)
        if isinstance(value, Tensor):
            changed[field.name] = (
                value[rows] if isinstance(rows, slice) else value.index_select(0, rows)
            )
        elif is_dataclass(value):
            changed[field.name] = take(value, rows)
    return replace(item, **changed)  # pyright: ignore[reportArgumentType]


def put(whole: T, rows: Tensor, part: T) -> T:
    """A copy of `whole`, a dataclass of tensors, with what `part` has for these rows."""
    names = [field.name for field in fields(whole)]  # pyright: ignore[reportArgumentType]
    changed = {n: getattr(whole, n).index_copy(0, rows, getattr(part, n)) for n in names}
    return replace(whole, **changed)  # pyright: ignore[reportArgumentType]


def column(values: Tensor, x: Tensor) -> Tensor:
    """(B,) shaped to broadcast over (B, ...)."""
    return values.view(-1, *[1] * (x.ndim - 1))


class Passes:
    """The passes of one attack.

    Args:
        engine: an `InputGradient` that is entered.
        eot: passes an iterate: gradient and loss are their means, for models that draw (expectation
            over transformation, Athalye et al. 2018, arXiv:1802.00420, section 4.3). The logits are
            those of the last.
    """

    def __init__(self, engine: InputGradient, eot: int = 1) -> None:
        self.engine = engine
        self.eot = eot
        self.classes = 0

    def gradient(self, x_adv: Tensor, goal: Goal) -> tuple[Tensor, Tensor, Tensor]:
        """Gradient (B, ...), loss (B,) and logits (B, C) at `x_adv`."""
        grad, loss, logits = self.engine(x_adv, goal.y, goal)
        for _ in range(self.eot - 1):
            more, other, logits = self.engine(x_adv, goal.y, goal)
            grad, loss = grad + more, loss + other
        self.classes = logits.shape[1]
        if self.eot > 1:
            grad, loss = grad / self.eot, loss / self.eot
        return grad, loss, logits

    def evaluate(self, x_adv: Tensor, goal: Goal) -> tuple[Tensor, Tensor]:
        """Loss (B,) and logits (B, C) at `x_adv`, without a gradient."""
        loss, logits = self.engine.evaluate(x_adv, goal.y, goal)
        for _ in range(self.eot - 1):
            other, logits = self.engine.evaluate(x_adv, goal.y, goal)
            loss = loss + other
        self.classes = logits.shape[1]
        return loss / self.eot, logits

    def clean(self, x: Tensor, y: Tensor) -> Tensor:
        """Logits (B, C) of the original images: one pass.

        Raises:
            ArgumentError: a logit is NaN (one host sync, none within `threat.known_values`).
        """
        _loss, logits = self.engine.evaluate(x, y, cross_entropy)
        self.classes = logits.shape[1]
        broken = logits.isnan().any(1)
        if not values_are_known() and bool(broken.any()):
            raise ArgumentError(
                describe(
                    "model",
                    "numbers as logits of the original images",
                    f"NaN for {int(broken.sum())} of {len(x)}",
                    "Look for a division by zero, or an overflow in half precision.",
                )
            )
        return logits
