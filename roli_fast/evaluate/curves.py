"""Robustness curves of an evaluation: accuracy against the radius, under each of its attacks."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from roli_fast.attacks.base import BallAttack
from roli_fast.data import Batch, ImageDataset
from roli_fast.engine import SearchModel
from roli_fast.evaluate.curve import Curve, robustness_curve
from roli_fast.evaluate.curve_plot import plot_curves
from roli_fast.evaluate.measurement import Measurement
from roli_fast.evaluate.samples import chunks
from roli_fast.evaluate.state import cost_of, to_flags, to_text

FOLDER = "curves"
PICTURE = "curve.png"


@dataclass(frozen=True)
class Curves(Measurement):
    """One piece for each attack and chunk.

    Args:
        dataset: the images, in the order of the evaluation.
        chunk: images at once.
        model: as searches have it.
        attacks: one curve each.
        radii: above 0, ascending.
        seed: of the draws.
        device: where the model is.
        name: of the model, in the picture.
    """

    dataset: ImageDataset
    chunk: int
    model: SearchModel
    attacks: Sequence[BallAttack]
    radii: tuple[float, ...]
    seed: int
    device: torch.device
    name: str

    title = "curves"

    @property
    def pieces(self) -> Sequence[str]:
        """ "pgd-10-00003", by attack and chunk."""
        return list(self._places)

    @cached_property
    def _places(self) -> dict[str, tuple[int, range]]:
        rows = chunks(len(self.dataset), self.chunk)
        return {
            f"{number}-{attack.label}-{place:05d}": (number, part)
            for number, attack in enumerate(self.attacks)
            for place, part in enumerate(rows)
        }

    def images(self, piece: str) -> int:
        """The size of its chunk."""
        return len(self._places[piece][1])

    def find(self, piece: str, check: Callable[[], None]) -> dict[str, Any]:
        """One chunk's flags at every radius, and what they cost."""
        number, rows = self._places[piece]
        check()
        batch = self.dataset.batch(torch.arange(rows.start, rows.stop))
        batch = Batch(batch.x.to(self.device), batch.y.to(self.device), batch.ids.to(self.device))
        curve = robustness_curve(
            self.model, [batch], self.attacks[number], self.radii, seed=self.seed
        )
        return {"right": [to_text(flags) for flags in curve.right], "cost": asdict(curve.cost)}

    def check_entry(self, piece: str, entry: dict[str, Any]) -> None:
        """Flags of every image at every radius, and a cost."""
        shape = [len(to_flags(text)) for text in entry["right"]]
        if shape != [self.images(piece)] * (1 + len(self.radii)):
            raise ValueError("a flag is missing")
        cost_of(entry["cost"])

    def report(self) -> list[dict[str, Any]] | None:
        """Each curve as `Curve.as_json`, with the flags (in the order of the data's ids)."""
        order = self.dataset.ids.argsort()
        found = []
        for number, attack in enumerate(self.attacks):
            parts = [
                self._curve(attack, self.entry(piece))
                for piece in self.pieces
                if self._places[piece][0] == number
            ]
            curve = Curve.join(parts)
            flags = [to_text(right[order]) for right in curve.right]
            found.append(curve.as_json() | {"flags": flags})
        return found or None

    def _curve(self, attack: BallAttack, entry: dict[str, Any]) -> Curve:
        right = torch.stack([to_flags(text) for text in entry["right"]])
        name = self.name or attack.label
        radii = (0.0, *self.radii)
        return Curve(name, attack.label, str(attack.norm), radii, right, cost_of(entry["cost"]))

    def plot(self, folder: Path) -> None:
        """Write all curves as one PNG."""
        found = self.report()
        if found:
            plot_curves(found, folder / PICTURE)
