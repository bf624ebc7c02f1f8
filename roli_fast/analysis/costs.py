"""What an analysis costs, said before it runs."""

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor, nn

from roli_fast.attacks import Attack
from roli_fast.data import Batch

logger = logging.getLogger("roli_fast.analysis")

FORWARD, INPUT_BACKWARD, WEIGHT_BACKWARD, JVP = 1, 1, 2, 2
"""Each pass in forwards. A forward is one matrix product a layer, W x. A backward to the input is
one more, W^T g; with weight gradients it is two, W^T g and g x^T. A Jacobian-vector product along
weights adds two to the forward that it rides on, W dx and dW x. So a gradient and a JVP on the same
images are 2 forwards + 2 + 2 = 6 units."""


@dataclass(frozen=True)
class Cost:
    """Model passes in samples, and what is done and held besides.

    Args:
        what: the analysis, "feature drift" say.
        forwards: samples through the model.
        input_backwards: samples back to the input, weights frozen.
        weight_backwards: samples back to the weights.
        jvps: samples whose forward carries a tangent along the weights; that forward itself is one
            of `forwards`.
        flops: arithmetic outside the model.
        bytes: the most that is held besides the model and its passes.
    """

    what: str
    forwards: int = 0
    input_backwards: int = 0
    weight_backwards: int = 0
    jvps: int = 0
    flops: float = 0.0
    bytes: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        """Both, one after the other: passes add up, and the larger memory stays."""
        what = self.what if self.what == other.what else f"{self.what}, {other.what}"
        return Cost(
            what,
            self.forwards + other.forwards,
            self.input_backwards + other.input_backwards,
            self.weight_backwards + other.weight_backwards,
            self.jvps + other.jvps,
            self.flops + other.flops,
            max(self.bytes, other.bytes),
        )

    def named(self, what: str) -> "Cost":
        """The same cost of something that is called so."""
        return replace(self, what=what)

    @property
    def forward_units(self) -> float:
        """All passes, in forwards of one sample."""
        return (
            FORWARD * self.forwards
            + INPUT_BACKWARD * self.input_backwards
            + WEIGHT_BACKWARD * self.weight_backwards
            + JVP * self.jvps
        )

    def seconds(self, forward_seconds: float, flops_per_second: float | None = None) -> float:
        """An estimate of the time it takes.

        Args:
            forward_seconds: of one sample's forward, measured in a batch of the usual size.
            flops_per_second: of matrix products; None leaves out what is done besides passes.
        """
        besides = self.flops / flops_per_second if flops_per_second else 0.0
        return self.forward_units * forward_seconds + besides

    def __str__(self) -> str:
        """One line for a user."""
        passes = {
            "forward": self.forwards,
            "input gradient": self.input_backwards,
            "weight gradient": self.weight_backwards,
            "JVP": self.jvps,
        }
        parts = [f"{n:,} {name}{'s' if n > 1 else ''}" for name, n in passes.items() if n]
        parts += [f"{_short(self.flops)}FLOP"] if self.flops else []
        parts += [f"{_short(self.bytes)}B"] if self.bytes else []
        return f"{self.what}: {', '.join(parts) or 'nothing'}"


def _short(amount: float) -> str:
    """ "3.1 M" for 3.08e6: two digits are what an estimate has."""
    if not 1e3 <= amount < 1e18:
        return f"{amount:.0f} " if amount < 1e3 else f"{amount:.1e} "
    place = int(math.log10(float(f"{amount:.1e}"))) // 3
    return f"{amount / 1000**place:.{0 if amount >= 10 * 1000**place else 1}f} {' kMGTP'[place]}"


def say(cost: Cost) -> None:
    """Tell the log what is about to be spent."""
    logger.info("%s", cost)


def say_for(count: int | None, cost: Cost) -> None:
    """`say`; where nobody knows how many samples will come, `cost` is that of one."""
    say(cost if count is not None else cost.named(f"{cost.what}, a sample"))


def count_of(batches: Iterable[Batch]) -> int | None:
    """How many samples these are; None where only running through them would tell."""
    if isinstance(batches, (list, tuple)):
        return sum(len(batch.y) for batch in batches)
    return None


class _Toy(nn.Module):
    """Right for class 0 by `margin`, from which every class moves away in its own way."""

    def __init__(self, classes: int, margin: float, slope: float) -> None:
        super().__init__()
        self.classes, self.margin, self.slope = classes, margin, slope

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(self.classes, dtype=x.dtype, device=x.device)
        moved = x.flatten(1).mean(1, keepdim=True)
        return self.slope * moved * places.square() - self.margin * places


_TOYS = ((10.0, 1e-3), (0.4, 1.0))
"""(margin, slope): one whose boundary no search reaches, and one where it lies outside the usual
balls, but within the images, where FAB looks closer at what it finds."""


@lru_cache(maxsize=64)
def _passes(attack: Attack, classes: int) -> tuple[int, int]:
    """(forwards, backwards) of one image, that of zeros where the bounds hold it."""
    low, high = getattr(attack, "bounds", None) or (0.0, 1.0)
    x, y = torch.full((1, 3, 8, 8), min(max(low, 0.0), high)), torch.zeros(1, dtype=torch.int64)
    costs = []
    for margin, slope in _TOYS:
        toy, draws = _Toy(classes, margin, slope).eval(), torch.Generator().manual_seed(0)
        costs.append(attack.run(toy, x, y, draws).cost)
    return max(c.forward_images for c in costs), max(c.backward_images for c in costs)


def attack_cost(attack: Attack, images: int, *, classes: int = 10) -> Cost:
    """The most an attack costs: its passes where no image is fooled, so that none leaves early.

    Counted, not written down: the attack is run on one blank image and toy models of so many
    classes that stay right. FAB-T's passes also depend on what it meets: up to 5 % may be missing.

    Args:
        attack: with norm, eps and bounds, `.under(threat)`.
        images: how many are attacked.
        classes: of the model, which targeted attacks depend on.
    """
    forwards, backwards = _passes(attack, classes)
    return Cost(attack.label, images * forwards, images * backwards)
