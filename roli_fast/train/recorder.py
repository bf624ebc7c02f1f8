"""Where numbers go while a run is under way: metrics.jsonl and TensorBoard."""

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from roli_fast.files import write_bytes, writing
from roli_fast.report.read import read_records

logger = logging.getLogger(__name__)


class Recorder:
    """Appends one JSON line per record, and the same numbers to TensorBoard.

    A record names its place: seed, method, stage, epoch. After a resume the records of epochs that
    will be trained again are dropped, so a resumed run's file equals an uninterrupted one's.
    TensorBoard only shows them again: where it fails it is told once, and the run goes on.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "metrics.jsonl"
        self._events = folder / "tensorboard"
        self._writer: Any = None
        self._begin()

    def _begin(self) -> None:
        with self._beside():
            from torch.utils.tensorboard.writer import SummaryWriter  # may not be in working order

            self._writer = SummaryWriter(str(self._events))

    def add(self, place: Mapping[str, Any], epoch: int, values: Mapping[str, float]) -> None:
        """Record `values` of one epoch of the stage at `place`."""
        line = json.dumps({**place, "epoch": epoch, **values})
        with writing(self._path), open(self._path, "a", encoding="utf-8") as file:
            file.write(line + "\n")
        self._show(place, epoch, values)

    def _show(self, place: Mapping[str, Any], epoch: int, values: Mapping[str, float]) -> None:
        prefix = "/".join(str(value) for value in place.values())
        with self._beside():
            if self._writer is None:
                return
            for name, value in values.items():
                self._writer.add_scalar(f"{prefix}/{name}", value, epoch)

    @contextlib.contextmanager
    def _beside(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # a full disk, whatever: nothing is lost with it
            logger.warning("TensorBoard shows no more: %s: %s", type(error).__name__, error)
            self._writer = None

    def forget(self, place: Mapping[str, Any], from_epoch: int) -> None:
        """Drop the records of the stage at `place` from `from_epoch` on."""
        if not self._path.is_file():
            return
        records, damaged = read_records(self._path)
        if damaged:
            logger.warning("%s: damaged lines are dropped: %s", self._path, damaged)
        kept = [
            record
            for record in records
            if not (place.items() <= record.items() and record["epoch"] >= from_epoch)
        ]
        write_bytes(self._path, "".join(json.dumps(record) + "\n" for record in kept).encode())
        self._replay(kept, tuple(place))

    def _replay(self, records: list[dict[str, Any]], names: tuple[str, ...]) -> None:
        """Write the events anew: event files cannot forget."""
        self.close()
        with self._beside():
            for path in self._events.glob("events.out.tfevents.*"):
                path.unlink()
        self._begin()
        for record in records:
            place = {name: record.pop(name) for name in names}
            self._show(place, record.pop("epoch"), record)

    def close(self) -> None:
        """Flush and close the event file."""
        with self._beside():
            if self._writer:
                self._writer.close()


class NoRecorder(Recorder):
    """Records nothing: in all processes but the first."""

    def __init__(self) -> None:
        pass

    def add(self, place: Mapping[str, Any], epoch: int, values: Mapping[str, float]) -> None:
        """Nothing."""

    def forget(self, place: Mapping[str, Any], from_epoch: int) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""
