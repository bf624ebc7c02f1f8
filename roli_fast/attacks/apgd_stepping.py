"""In which norms a loop of APGD steps: in one, or in several side by side in one batch."""

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from roli_fast.attacks.apgd_schedule import (
    Control,
    Halving,
    Sparsity,
    checkpoints,
    sparse_checkpoints,
)
from roli_fast.attacks.base import Radius
from roli_fast.attacks.passes import Samples, take
from roli_fast.norms import NORMS
from roli_fast.threat import Bounds


class Stepping(Protocol):
    """What makes the control of one loop."""

    def control(self, samples: Samples, start: Tensor, loss: Tensor, steps: int) -> Control:
        """The control before the first of `steps` from `start`, whose loss (B,) is known."""
        ...


@dataclass(frozen=True)
class OneNorm:
    """All samples step in the same norm.

    Args:
        norm: its name.
        rho: see `Halving`.
        density: L1: that of the first steps; None takes the start's own.
    """

    norm: str
    rho: float
    density: float | None

    def control(self, samples: Samples, start: Tensor, loss: Tensor, steps: int) -> Control:
        """See `Stepping`."""
        norm = NORMS[self.norm]
        if not norm.sparse:
            return Halving.begin(norm, checkpoints(steps), self.rho, samples, loss)
        looks = sparse_checkpoints(steps)
        if self.density is None:
            return Sparsity.from_start(norm, looks, samples, start)
        return Sparsity.begin(norm, looks, samples, self.density)


@dataclass(frozen=True)
class SeveralNorms:
    """A batch of m parts of equal size, one after another, each in its own norm and radius.

    Args:
        parts: m pairs of how a part steps and of its eps, a number or one a sample of the part,
            which goes before that of the samples.
    """

    parts: tuple[tuple[OneNorm, Radius], ...]

    def control(self, samples: Samples, start: Tensor, loss: Tensor, steps: int) -> Control:
        """See `Stepping`."""
        size = len(samples) // len(self.parts)
        found = []
        for number, (stepping, eps) in enumerate(self.parts):
            rows = slice(number * size, (number + 1) * size)
            own = replace(take(samples, rows), eps=eps)
            found.append(Part(rows, own, stepping.control(own, start[rows], loss[rows], steps)))
        return SideBySide(tuple(found))


@dataclass(frozen=True)
class Part:
    """The rows of a batch that step together, as samples of their own, and their control."""

    rows: slice
    samples: Samples
    control: Control


@dataclass
class SideBySide:
    """The controls of several parts of one batch as one. Nobody may leave the batch."""

    parts: tuple[Part, ...]

    def advance(  # noqa: PLR0913 - as in the protocol
        self,
        x_adv: Tensor,
        x_prev: Tensor,
        grad: Tensor,
        samples: Samples,
        bounds: Bounds,
        first: bool,
    ) -> tuple[Tensor, Tensor]:
        """One step of each part; the new iterate takes the memory of `x_prev`."""
        for part in self.parts:
            here, before = x_adv[part.rows], x_prev[part.rows]
            rows = grad[part.rows]
            new, _ = part.control.advance(here, before, rows, part.samples, bounds, first)
            if new is here:  # without momentum it stepped in place
                before.copy_(new)
        return x_prev, x_adv

    def observe(self, loss: Tensor) -> None:
        """Each part its own."""
        for part in self.parts:
            part.control.observe(loss[part.rows])

    def look_back(self, step: int, best_x: Tensor, best_loss: Tensor, x: Tensor) -> Tensor | None:
        """Each part where it is its time; the rest goes on where it is."""
        found = [
            part.control.look_back(step, best_x[part.rows], best_loss[part.rows], part.samples.x)
            for part in self.parts
        ]
        if all(back is None for back in found):
            return None
        pairs = zip(found, self.parts, strict=True)
        none = torch.zeros(len(best_loss), dtype=torch.bool, device=best_loss.device)
        return torch.cat([none[part.rows] if back is None else back for back, part in pairs])
