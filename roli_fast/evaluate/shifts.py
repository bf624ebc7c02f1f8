"""Accuracy on other images: common corruptions of the same ones, and a second data set."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from roli_fast.attacks.ensemble import total
from roli_fast.attacks.objective import is_right
from roli_fast.data import ImageDataset
from roli_fast.data.corruptions import CORRUPTIONS, SEVERITIES, corrupted
from roli_fast.engine import InputGradient, SearchModel, plain
from roli_fast.errors import ConfigError, describe
from roli_fast.evaluate.confidence import wilson_interval
from roli_fast.evaluate.measurement import Measurement
from roli_fast.evaluate.state import cost_of, to_flags, to_text
from roli_fast.losses import cross_entropy

FOLDER = "shifts"
SECOND = "ood"
"""The view of the second data set."""


def kinds(names: tuple[str, ...]) -> tuple[str, ...]:
    """The corruptions meant by `names`; "all" stands for every one.

    Raises:
        ConfigError: an unknown name, or one twice.
    """
    if names == ("all",):
        return CORRUPTIONS.names()
    known = f"'all', or different ones of: {', '.join(CORRUPTIONS)}"
    if any(name not in CORRUPTIONS for name in names) or len(set(names)) < len(names):
        raise ConfigError(describe("corruptions", known, ", ".join(names)))
    return names


def views(
    dataset: ImageDataset, names: tuple[str, ...], seed: int, second: ImageDataset | None
) -> dict[str, ImageDataset]:
    """Name -> images: "fog-3" for a kind and a severity, "ood" for the second data set."""
    found = {
        f"{kind}-{severity}": corrupted(dataset, kind, severity, seed=seed)
        for kind in kinds(names)
        for severity in SEVERITIES
    }
    return found | ({SECOND: second} if second is not None else {})


@dataclass(frozen=True)
class Shifts(Measurement):
    """What is measured on every view; a view is a piece.

    Args:
        model: as searches have it; its own precision counts.
        views: name -> images.
        batch: images that are read at once.
        device: where the model is.
    """

    model: SearchModel
    views: Mapping[str, ImageDataset]
    batch: int
    device: torch.device

    title = "shifts"

    @property
    def pieces(self) -> Sequence[str]:
        """The views' names."""
        return list(self.views)

    def images(self, piece: str) -> int:
        """The size of a view."""
        return len(self.views[piece])

    def find(self, piece: str, check: Callable[[], None]) -> dict[str, Any]:
        """Classify one view; `check` is called between batches."""
        dataset, flags, costs = self.views[piece], [], []
        for rows in torch.arange(len(dataset)).split(self.batch):
            check()
            batch = dataset.batch(rows)
            x, y = batch.x.to(self.device), batch.y.to(self.device)
            with InputGradient(plain(self.model)) as engine, torch.no_grad():
                flags.append(is_right(engine.evaluate(x, y, cross_entropy)[1], y).cpu())
                costs.append(engine.cost)
        return {"right": to_text(torch.cat(flags)), "cost": asdict(total(costs))}

    def check_entry(self, piece: str, entry: dict[str, Any]) -> None:
        """A flag for every image, and a cost."""
        if len(to_flags(entry["right"])) != self.images(piece):
            raise ValueError("a flag is missing")
        cost_of(entry["cost"])

    def report(self) -> dict[str, Any] | None:
        """Each view, each kind over its severities, and all kinds.

        Flags are in the order of the data's ids, as everywhere in evaluation.json; the second data
        set has ids of its own.
        """
        if not self.views:
            return None
        out: dict[str, Any] = {"corruptions": {}, "corruption_accuracy": None, SECOND: None}
        for name, dataset in self.views.items():
            saved, order = self.entry(name), dataset.ids.argsort()
            text = "".join(saved["right"][place] for place in order.tolist())
            right = text.count("1")
            entry = {
                "accuracy": right / len(text),
                "interval_95": list(wilson_interval(right, len(text))),
                "images": len(text),
                "flags": text,
                "cost": saved["cost"],
            }
            if name == SECOND:
                out[SECOND] = entry | {"ids": dataset.ids[order].tolist()}
            else:
                kind, _, severity = name.rpartition("-")
                out["corruptions"].setdefault(kind, {})[severity] = entry
        means = [
            sum(entry["accuracy"] for entry in levels.values()) / len(levels)
            for levels in out["corruptions"].values()
        ]
        if means:
            out["corruption_accuracy"] = sum(means) / len(means)
        return out
