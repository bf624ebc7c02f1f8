"""What all stages of one run share: device, workers, stop signals, progress bars, what is left to
do, and where the numbers go: metrics.jsonl and TensorBoard."""

import json
import logging
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from roli_fast.data import Batch, ImageDataset, batches
from roli_fast.evaluate import Evaluation
from roli_fast.files import write_bytes, writing
from roli_fast.report.read import read_records
from roli_fast.running.distributed import Distributed
from roli_fast.running.progress import progress_bar
from roli_fast.running.signals import Interrupt
from roli_fast.running.text import duration

MEASURED_SECONDS = 10.0
"""Of updates, before a run says how long it will take."""

logger = logging.getLogger("roli_fast.train")

StageId = Mapping[str, Any]
"""What names a stage of a run, its records and its bars: "seed", "method" and "stage"."""


class Recorder:
    """Appends one JSON line an epoch to metrics.jsonl, and shows the same numbers in TensorBoard.

    There every stage is a run of its own ("seed-0/roli/probe") and tags say what they are
    ("train/loss", "validation/robust_accuracy"), so that methods share a chart. The lines of epochs
    that will be trained again are dropped: a resumed run's file equals an uninterrupted one's.

    Args:
        folder: the run's; None records nothing, as in all processes but the first.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder, self._shows = folder, folder is not None
        self._run = ""
        self._writer: Any = None

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *_error: object) -> None:
        self.show("", lambda _: None)

    def add(
        self, stage_id: StageId, epoch: int, values: Mapping[str, float], *, attacked: bool = False
    ) -> None:
        """Record `values` of one epoch of a stage; `attacked` says whether it trained on attacked
        images."""
        if self._folder is None:
            return
        path = self._folder / "metrics.jsonl"
        line = json.dumps({**stage_id, "epoch": epoch, **values})
        with writing(path), open(path, "a", encoding="utf-8") as file:
            file.write(line + "\n")

        def scalars(writer: Any) -> None:
            for name, value in values.items():
                writer.add_scalar(tag(name, attacked=attacked), value, epoch)

        self.show("seed-{seed}/{method}/{stage}".format(**stage_id), scalars, first=epoch)

    def show(self, run: str, draw: Callable[[Any], object], *, first: int | None = None) -> None:
        """Let `draw` write to TensorBoard's `run` with a SummaryWriter. TensorBoard only shows:
        where it fails it is told once, and the work goes on.

        Args:
            run: path below tensorboard/; "" closes the last one.
            draw: is given the writer.
            first: what an earlier process wrote from this epoch on is hidden.
        """
        if not self._shows:
            return
        try:
            if run != self._run:
                writer, self._writer, self._run = self._writer, None, run
                if writer is not None:
                    writer.close()
            if run and self._writer is None:
                # not at the top: it may be out of order, and takes a second
                from torch.utils.tensorboard.writer import SummaryWriter

                assert self._folder is not None, "it shows"
                where = self._folder / "tensorboard" / run
                self._writer = SummaryWriter(str(where), purge_step=first)
            draw(self._writer)
        except Exception as error:  # a full disk, whatever: nothing is lost with it
            logger.warning("TensorBoard shows no more: %s: %s", type(error).__name__, error)
            self._shows = False

    def forget(self, stage_id: StageId, from_epoch: int) -> None:
        """Drop the records of a stage from `from_epoch` on."""
        path = self._folder / "metrics.jsonl" if self._folder else None
        if path is None or not path.is_file():
            return
        records, damaged = read_records(path)
        if damaged:
            logger.warning("%s: damaged lines are dropped: %s", path, damaged)
        own = [row for row in records if stage_id.items() <= row.items()]
        again = [row for row in own if row["epoch"] >= from_epoch]
        lines = [json.dumps(row) + "\n" for row in records if row not in again]
        write_bytes(path, "".join(lines).encode())


def tag(name: str, *, attacked: bool) -> str:
    """TensorBoard's name of a recorded value: "train/loss" of "train_loss". Accuracies say whether
    they are clean or robust: "train/robust_accuracy" of "train_accuracy" on attacked images."""
    groups = ("validation", "natural_train", "train")
    group = next((group for group in groups if name.startswith(f"{group}_")), "train")
    name = name.removeprefix(f"{group}_")
    if name == "accuracy":
        name = "robust_accuracy" if attacked and group == "train" else "clean_accuracy"
    return f"{group}/{name}"


@dataclass
class Remaining:
    """The stages of a run that are not finished, and how long they take.

    Args:
        passes: (seed, method, stage) -> `Stage.passes`, of one image and of all, in their order.
        stages: how many the whole run has.
    """

    passes: dict[tuple[Any, ...], tuple[float, float]] = field(default_factory=dict)
    stages: int = 0
    _told: bool = False
    _seconds: float = 0.0
    _done: float = 0.0

    def title(self, stage_id: StageId) -> str:
        """ "stage 2 of 5, seed 0 roli/probe"; without the count where it is not known."""
        name, keys = "seed {seed} {method}/{stage}".format(**stage_id), list(self.passes)
        if (key := tuple(stage_id.values())) not in keys:
            return name
        return f"stage {self.stages - len(keys) + keys.index(key) + 1} of {self.stages}, {name}"

    def measured(self, stage_id: StageId, images: int, seconds: float, left: float) -> None:
        """Note how long some updates took; once there is enough of them, tell how long the rest of
        the run will take.

        Args:
            stage_id: of their stage.
            images: that they trained on.
            seconds: that they took.
            left: share of the stage that is still to come.
        """
        key = tuple(stage_id.values())
        if self._told or key not in self.passes:
            return
        own, whole = self.passes[key]
        self._done, self._seconds = self._done + images * own, self._seconds + seconds
        if self._seconds < MEASURED_SECONDS:
            return
        self._told, keys = True, list(self.passes)
        later = sum(self.passes[key][1] for key in keys[keys.index(key) + 1 :])
        rest = (left * whole + later) * self._seconds / self._done
        text = "about %s of training and validation are left, by the first %.0f seconds of updates"
        logger.info(text, duration(rest), self._seconds)


@dataclass
class Context:
    """Handed to every stage of a run."""

    device: torch.device
    workers: int
    checkpoint_minutes: float
    recorder: Recorder
    interrupt: Interrupt
    quiet: bool = False
    distributed: Distributed = field(default_factory=Distributed)
    remaining: Remaining = field(default_factory=Remaining)

    def bar(self, title: str, *, total: int, initial: int = 0) -> tqdm:
        """A progress bar in images; where nobody watches a terminal, a line now and then."""
        quiet = self.quiet or not self.distributed.is_main
        return progress_bar(title, total=total, initial=initial, quiet=quiet)

    def wanted(self, *, save: bool = False) -> bool:
        """Whether to save now, as all processes agree: one is for it, or was sent a signal.

        Args:
            save: whether this process is for it.
        """
        own = self.interrupt.signal
        wish = self.distributed.all_max(1 + own if own else int(save))
        if wish > 1:
            self.interrupt.signal = signal.Signals(wish - 1)
        return wish > 0

    def check(self) -> None:
        """Stop all processes if one was sent a signal.

        Raises:
            InterruptedRunError: then.
        """
        self.wanted()
        self.interrupt.check()

    def evaluation_batches(self, dataset: ImageDataset, batch_size: int) -> Iterator[Batch]:
        """The split once, in its own order, without augmentation: of several processes, each takes
        as many images of it, by turns; `whole` puts together what they found.

        Args:
            dataset: the split.
            batch_size: images that a process holds at once.
        """
        world = self.distributed.world_size
        own = torch.arange(-(-len(dataset) // world)) * world + self.distributed.rank
        return batches(
            dataset.plain().subset(own.clamp(max=len(dataset) - 1)),
            batch_size=batch_size,
            seed=0,
            epoch=0,
            shuffle=False,
            workers=self.workers,
            device=self.device,
        )

    def whole(self, own: Evaluation, dataset: ImageDataset) -> Evaluation:
        """The flags of all images of a split, from what the processes found in their parts."""
        robust = {label: self.put_together(f, dataset) for label, f in own.robust.items()}
        return Evaluation(self.put_together(own.clean, dataset), robust)

    def put_together(self, own: Tensor, dataset: ImageDataset) -> Tensor:
        """(N, ...) of all images of a split, in its order, from the CPU tensors that the processes
        made of their `evaluation_batches`."""
        if self.distributed.world_size == 1:
            return own
        parts = self.distributed.all_gather_tensors(own)
        return torch.stack(parts, dim=1).flatten(0, 1)[: len(dataset)]


def counter(bar: tqdm, world: int) -> Callable[[int], None]:
    """Moves a bar by what all processes did while this one did `count` images."""

    def move(count: int) -> None:
        bar.update(min(count * world, max(0, bar.total - bar.n)))

    return move
