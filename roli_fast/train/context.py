"""What all stages of one run share: device, workers, records, stop signals, progress bars."""

import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from tqdm import tqdm

from roli_fast.data import Batch, ImageDataset, batches
from roli_fast.evaluate import Evaluation
from roli_fast.running.progress import progress_bar
from roli_fast.running.signals import Interrupt
from roli_fast.running.team import Team
from roli_fast.train.metrics import Recorder


@dataclass
class Context:
    """Handed to every stage of a run."""

    device: torch.device
    workers: int
    checkpoint_minutes: float
    recorder: Recorder
    interrupt: Interrupt
    quiet: bool = False
    team: Team = field(default_factory=Team)

    def bar(self, title: str, *, total: int, initial: int = 0) -> tqdm:
        """A progress bar in images; where nobody watches a terminal, a line now and then."""
        quiet = self.quiet or not self.team.leads
        return progress_bar(title, total=total, initial=initial, quiet=quiet)

    def wanted(self, *, save: bool = False) -> bool:
        """Whether to save now, as all processes agree: one is for it, or was sent a signal.

        Args:
            save: whether this process is for it.
        """
        own = self.interrupt.signal
        wish = self.team.agree(1 + own if own else int(save))
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
        world = self.team.world
        own = torch.arange(-(-len(dataset) // world)) * world + self.team.rank
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
        if self.team.world == 1:
            return own
        return torch.stack(self.team.gather_tensors(own), dim=1).flatten(0, 1)[: len(dataset)]


def counter(bar: tqdm, world: int) -> Callable[[int], None]:
    """Moves a bar by what all processes did while this one did `count` images."""

    def move(count: int) -> None:
        bar.update(min(count * world, max(0, bar.total - bar.n)))

    return move
