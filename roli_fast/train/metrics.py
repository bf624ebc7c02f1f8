"""Numbers of a run under way: those of its updates, brought over without making anybody wait, how
long the loop waited for images, and where they go: metrics.jsonl and TensorBoard.
"""

import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from roli_fast.files import write_bytes, writing
from roli_fast.report.read import read_records


class Tally:
    """Rows of numbers, one an update, from the device to the host.

    A reader on a GPU's host gets rows one block late: the copy of a block starts when it is full,
    and it is read when the next one is, many updates later, so neither the device nor the updates
    that are queued for it pause. How late is a matter of counting, never of timing: several
    processes of a run read the same rows at the same update.

    Args:
        device: where the rows are made.
        block: rows that are copied at once.
    """

    def __init__(self, device: torch.device, block: int = 16) -> None:
        self._block = block
        self._late = device.type == "cuda"
        self._rows: list[Tensor] = []
        self._sent: list[tuple[Tensor, torch.cuda.Event | None]] = []

    def __len__(self) -> int:
        """How many rows were added and not taken."""
        return len(self._rows) + sum(len(rows) for rows, _ in self._sent)

    @property
    def due(self) -> bool:
        """Whether a block is full: `take` what is there."""
        return len(self._rows) >= self._block

    def add(self, row: Tensor) -> None:
        """Note the row (k,) of an update, on the device."""
        self._rows.append(row)

    def take(self, *, last: bool) -> Tensor:
        """Rows (n, k) on the host, oldest first.

        Args:
            last: all of them, which waits for the device; else what can be read without.
        """
        if self._rows:
            self._sent.append(_copied(torch.stack(self._rows)))
            self._rows = []
        kept = self._late and not last
        ready, self._sent = (self._sent[:-1], self._sent[-1:]) if kept else (self._sent, [])
        for _rows, event in ready:
            if event is not None:
                event.synchronize()
        return torch.cat([rows for rows, _ in ready]) if ready else torch.empty(0, 0)


def _copied(rows: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """The rows on the host, and what tells that they have arrived there."""
    if not rows.is_cuda:
        return rows.cpu(), None
    host = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True)
    host.copy_(rows, non_blocking=True)
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(rows.device))
    return host, event


T = TypeVar("T")


def timed(source: Iterable[T], waited: Callable[[float], object]) -> Iterator[T]:
    """The items of `source`; `waited` is told the seconds for which each was waited.

    The start counts as well: workers that are forked, the first batch that they decode. Where a GPU
    computes meanwhile, its host waits and it does not: the seconds are an upper bound then.
    """
    started = time.perf_counter()
    for item in source:
        waited(time.perf_counter() - started)
        yield item
        started = time.perf_counter()


logger = logging.getLogger(__name__)


class Recorder:
    """Appends one JSON line per record, and the same numbers to TensorBoard.

    A record names its place: seed, method, stage, epoch. After a resume the records of epochs that
    will be trained again are dropped, so a resumed run's file equals an uninterrupted one's.
    TensorBoard only shows them again: where it fails it is told once, and the run goes on.

    Args:
        folder: the run's; None records nothing, as in all processes but the first.
    """

    def __init__(self, folder: Path | None) -> None:
        self._path = folder / "metrics.jsonl" if folder else None
        self._writer: Any = None
        if folder:
            with self._beside():
                from torch.utils.tensorboard.writer import SummaryWriter  # may be out of order

                self._writer = SummaryWriter(str(folder / "tensorboard"))

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *_error: object) -> None:
        if self._writer:
            with self._beside():
                self._writer.close()

    def add(self, place: Mapping[str, Any], epoch: int, values: Mapping[str, float]) -> None:
        """Record `values` of one epoch of the stage at `place`."""
        if self._path is None:
            return
        line = json.dumps({**place, "epoch": epoch, **values})
        with writing(self._path), open(self._path, "a", encoding="utf-8") as file:
            file.write(line + "\n")
        prefix = "/".join(str(value) for value in place.values())
        for name, value in values.items() if self._writer else ():
            with self._beside():
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
        if self._path is None or not self._path.is_file():
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
