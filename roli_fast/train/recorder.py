"""Where numbers go while a run is under way: metrics.jsonl and TensorBoard."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard.writer import SummaryWriter

from roli_fast.files import write_bytes


class Recorder:
    """Appends one JSON line per record, and the same numbers to TensorBoard.

    A record names its place: seed, method, stage, epoch. After a resume the records of epochs that
    will be trained again are dropped, so a resumed run's file equals an uninterrupted one's.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "metrics.jsonl"
        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def add(self, place: Mapping[str, Any], epoch: int, values: Mapping[str, float]) -> None:
        """Record `values` of one epoch of the stage at `place`."""
        line = json.dumps({**place, "epoch": epoch, **values})
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(line + "\n")
        prefix = "/".join(str(value) for value in place.values())
        for name, value in values.items():
            self._writer.add_scalar(f"{prefix}/{name}", value, epoch)

    def forget(self, place: Mapping[str, Any], from_epoch: int) -> None:
        """Drop the records of the stage at `place` from `from_epoch` on."""
        if not self._path.exists():
            return
        kept = []
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except ValueError:  # the last line of a killed run may be cut short
                continue
            here = all(record.get(key) == value for key, value in place.items())
            if not (here and record["epoch"] >= from_epoch):
                kept.append(line + "\n")
        write_bytes(self._path, "".join(kept).encode())

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()
