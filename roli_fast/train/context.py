"""What all stages of one run share: device, workers, records, stop signals, progress bars."""

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from roli_fast.data import Batch, ImageDataset, batches
from roli_fast.errors import ArgumentError, describe
from roli_fast.train.recorder import Recorder
from roli_fast.train.signals import Interrupt

_ONE_THREAD_FLOPS = 2e9


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
        watched = sys.stderr.isatty()
        return tqdm(
            total=total,
            initial=initial,
            desc=title,
            unit="img",
            disable=self.quiet,
            dynamic_ncols=watched,
            mininterval=0.2 if watched else 30.0,
            maxinterval=10.0 if watched else 60.0,
        )

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


def pick_device(name: str) -> torch.device:
    """ "auto" takes a GPU where there is one; anything else is a torch device name."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ArgumentError(describe("device", "'auto', 'cpu' or 'cuda'", repr(name))) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ArgumentError(
            describe("device", "a device that torch finds", repr(name), "Use --device cpu.")
        )
    return device


def pick_threads(model: nn.Module, image_size: int, batch_size: int) -> int:
    """How many CPU threads pay for this model: one where a batch is below about 2 GFLOP,
    else what torch would take (OMP_NUM_THREADS is respected).

    OpenMP threads wait by spinning: for small operations a second thread gains little on a calm
    machine and loses a factor of ten and more beside another busy process.
    """
    image = torch.zeros(1, 3, image_size, image_size)
    training = model.training
    model.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    model.train(training)
    small = counter.get_total_flops() * batch_size < _ONE_THREAD_FLOPS
    return 1 if small else min(torch.get_num_threads(), _usable_cpus())


def _usable_cpus() -> int:
    """CPUs that this process may run on, where the system tells."""
    usable = getattr(os, "sched_getaffinity", None)
    return len(usable(0)) if usable else (os.cpu_count() or 1)
