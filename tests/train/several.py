"""What each of several processes does in a test: a small run, in which something may happen."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from small import FLAGS

from roli_fast.errors import DataError
from roli_fast.train import loop, pipeline
from roli_fast.train.__main__ import main

FAST = (
    "--methods=ranli --ranli.epochs=2 --ranli.attack.steps=2 --ranli.batch_size=35 "
    "--ranli.optimizer.name=sgd --ranli.optimizer.lr=0.05"
).split()
"""72 images: batches of 35, 35 and 2. SGD, for the first steps of Adam are the gradients' signs, in
which a rounding around 0 is a whole step."""


def train(folder: Path, *more: str, double: bool = False) -> int:
    """The command line in `folder`, or its --resume; with `double` in fp64. The exit status."""
    if double:
        create = pipeline.create
        pipeline.create = lambda *a, **o: create(*a, **o).double()
    where = ["--run_dir", str(folder)]
    return main([*where, "--resume"] if folder.exists() else [*where, *FLAGS, *FAST, *more])


def struck(
    event: str, rank: int, after: int, folder: Path, *more: str, double: bool = False
) -> int:
    """`train`, and at the update `after` the `event` comes over process `rank` alone."""
    original, count = loop.StageLoop._update, 0

    def update(self: loop.StageLoop, epoch: int, batch: Any) -> Any:
        nonlocal count
        count += 1
        if count == after and os.environ["RANK"] == str(rank):
            EVENTS[event](self)
        return original(self, epoch, batch)

    loop.StageLoop._update = update
    return train(folder, *more, double=double)


def _bug(_loop: loop.StageLoop) -> None:
    raise KeyError("no such thing")


def _damaged(_loop: loop.StageLoop) -> None:
    raise DataError("`images`: expected an image, got 'a.png'.")


def _full_disk(stage: loop.StageLoop) -> None:
    def save() -> None:
        raise OSError("No space left on device")

    stage._save = save


EVENTS: dict[str, Callable[[loop.StageLoop], None]] = {
    "SIGTERM": lambda _: os.kill(os.getpid(), signal.SIGTERM),
    "SIGKILL": lambda _: os.kill(os.getpid(), signal.SIGKILL),
    "bug": _bug,
    "damaged image": _damaged,
    "full disk": _full_disk,
}


def struck_in_validation(rank: int, folder: Path) -> int:
    """`train`, and one process is sent SIGTERM in its first validation."""
    evaluate = loop.evaluate

    def watched(*arguments: Any, **options: Any) -> Any:
        if os.environ["RANK"] == str(rank):
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*arguments, **options)

    loop.evaluate = watched
    return train(folder)
