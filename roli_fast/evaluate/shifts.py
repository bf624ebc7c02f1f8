"""Accuracy on other images: common corruptions of the same ones, and a second data set."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from roli_fast.attacks.objective import is_right
from roli_fast.attacks.recheck import plain
from roli_fast.data import ImageDataset
from roli_fast.data.corruptions import CORRUPTIONS, SEVERITIES, corrupted
from roli_fast.engine import InputGradient, SearchModel
from roli_fast.errors import ConfigError, RunDirectoryError, describe
from roli_fast.evaluate.confidence import wilson_interval
from roli_fast.evaluate.state import to_flags, to_text
from roli_fast.files import write_json
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
class Shifts:
    """What is measured on every view, and where it is kept: one small file each.

    Args:
        folder: the evaluation's.
        identity: of the evaluation; files of another one are refused.
        model: as searches have it; its own precision counts.
        views: name -> images.
        batch: images that are read at once.
        device: where the model is.
    """

    folder: Path
    identity: str
    model: SearchModel
    views: Mapping[str, ImageDataset]
    batch: int
    device: torch.device

    def measure(self, name: str, check: Callable[[], None]) -> None:
        """Classify one view and save the flags; `check` is called between batches."""
        dataset, flags = self.views[name], []
        for rows in torch.arange(len(dataset)).split(self.batch):
            check()
            batch = dataset.batch(rows)
            x, y = batch.x.to(self.device), batch.y.to(self.device)
            with InputGradient(plain(self.model)) as engine, torch.no_grad():
                flags.append(is_right(engine.evaluate(x, y, cross_entropy)[1], y).cpu())
        entry = {"identity": self.identity, "right": to_text(torch.cat(flags))}
        write_json(self._path(name), entry)

    def right(self, name: str) -> str | None:
        """The saved flags of a view; None where there are none yet.

        Raises:
            RunDirectoryError: the file cannot be read, or belongs to something else.
        """
        path = self._path(name)
        if not path.exists():
            return None
        try:
            entry = json.loads(path.read_text(encoding="utf-8"))
            if entry["identity"] != self.identity:
                raise ValueError("it belongs to another evaluation")
            if len(to_flags(entry["right"])) != len(self.views[name]):
                raise ValueError("a flag is missing")
            return entry["right"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            fix = "Nothing was changed. Move that file away to measure it again."
            got = f"'{path}': {type(error).__name__}: {error}"
            raise RunDirectoryError(
                describe("--out", "the state that this evaluation wrote", got, fix)
            ) from error

    def report(self) -> dict[str, Any]:
        """What evaluation.json says: each view, each kind over its severities, and all kinds."""
        out: dict[str, Any] = {"corruptions": {}, "corruption_accuracy": None, SECOND: None}
        for name in self.views:
            text = self.right(name)
            assert text is not None, "every view is measured by now"
            right = text.count("1")
            entry = {
                "accuracy": right / len(text),
                "interval_95": list(wilson_interval(right, len(text))),
                "images": len(text),
                "flags": text,
            }
            if name == SECOND:
                out[SECOND] = entry
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

    def _path(self, name: str) -> Path:
        return self.folder / FOLDER / f"{name}.json"
