"""The samples of a data set on disk, before any image is opened."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from roli_fast.data.pixels import FilePixels

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, eq=False)
class FileTable:
    """All samples in the order of their paths, so that a row, the sample id, is reproducible.

    Args:
        paths: N relative paths, sorted.
        labels: int64 (N,).
        rows: split -> int64 rows, ascending.
        classes: the name of each label.
    """

    paths: tuple[str, ...] = field(repr=False)
    labels: Tensor = field(repr=False)
    rows: Mapping[str, Tensor] = field(repr=False)
    classes: tuple[str, ...]

    @classmethod
    def of(
        cls, entries: Mapping[str, Sequence[tuple[str, int]]], classes: Sequence[str]
    ) -> "FileTable":
        """Collect `entries`, split -> (path, label); paths are unique over all splits."""
        found = sorted(
            (path, label, split) for split, pairs in entries.items() for path, label in pairs
        )
        rows = {
            split: torch.tensor(
                [row for row, (_, _, of) in enumerate(found) if of == split], dtype=torch.int64
            )
            for split in entries
        }
        labels = torch.tensor([label for _, label, _ in found], dtype=torch.int64)
        return cls(tuple(path for path, _, _ in found), labels, rows, tuple(classes))

    def pixels(self, root: Path) -> FilePixels:
        """The images, as files below `root`."""
        names = tuple(self.classes[label] for label in self.labels.tolist())
        return FilePixels(root, self.paths, names)
