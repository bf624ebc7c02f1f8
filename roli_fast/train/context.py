"""What all stages of one run share: device, workers, records, stop signals, progress bars."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from tqdm import tqdm

from roli_fast.data import Batch, ImageDataset, batches
from roli_fast.running.progress import progress_bar
from roli_fast.running.signals import Interrupt
from roli_fast.train.recorder import Recorder


@dataclass
class Context:
    """Handed to every stage of a run."""

    device: torch.device
    workers: int
    checkpoint_minutes: float
    recorder: Recorder
    interrupt: Interrupt
    quiet: bool = False

    def bar(self, title: str, *, total: int, initial: int = 0) -> tqdm:
        """A progress bar in images; where nobody watches a terminal, a line now and then."""
        return progress_bar(title, total=total, initial=initial, quiet=self.quiet)

    def evaluation_batches(self, dataset: ImageDataset, batch_size: int) -> Iterator[Batch]:
        """The whole split once, in its own order, without augmentation."""
        return batches(
            dataset.plain(),
            batch_size=batch_size,
            seed=0,
            epoch=0,
            shuffle=False,
            workers=self.workers,
            device=self.device,
        )
