"""What each of several processes does in a test: a small run, in which something may happen."""

import dataclasses
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from small import FLAGS, RESNET

from roli_fast.data import Splits
from roli_fast.data.digits import Digits
from roli_fast.errors import DataError
from roli_fast.train import loop, run_directory
from roli_fast.train.__main__ import main

WHOLE = (
    "--methods=roli --source=digits --source.classes=1,2 --source.max_per_class=20 "
    "--pretrain.epochs=1 --pretrain.optimizer.name=sgd --pretrain.attack.steps=1 "
    "--probe.epochs=1 --probe.attack.steps=2 --probe.batch_size=35 --probe.optimizer.lr=null "
    "--finetune.epochs=2 "
    "--finetune.optimizer.name=sgd --finetune.optimizer.lr=0.05 --finetune.attack.steps=2 "
    "--finetune.batch_size=35 --finetune.accumulate=2"
).split()
"""All kinds of stages. 72 images: batches of 35, 35 and 2. SGD, for the first steps of Adam are the
gradients' signs, in which a rounding around 0 is a whole step."""

FAST = (
    "--methods=ranli --ranli.epochs=2 --ranli.attack.steps=2 --ranli.batch_size=35 "
    "--ranli.optimizer.lr=0.01 --model.options.proj_drop_rate=0.1"
).split()
"""One stage of six updates, with dropout."""


def train(folder: Path, *more: str, double: bool = False, skip: str = "?") -> int:
    """The command line in `folder`, or its --resume; with `double` WHOLE in fp64, else FAST, and
    without the flags that begin with `skip`. The exit status."""
    if double:
        create = run_directory.create
        run_directory.create = lambda *a, **o: create(*a, **o).double()
    flags = [flag for flag in [*FLAGS, *(WHOLE if double else FAST)] if not flag.startswith(skip)]
    where = ["--run_dir", str(folder)]
    return main([*where, "--resume"] if folder.exists() else [*where, *flags, *more])


def struck(
    event: str, rank: int, after: int, folder: Path, *more: str, double: bool = False
) -> int:
    """`train`, and at the update `after` the `event` comes over process `rank` alone."""
    original, count = loop.StageLoop._update, 0

    def update(self: loop.StageLoop, epoch: int, batch: Any) -> Any:
        nonlocal count
        count += 1
        if count == after and os.environ["RANK"] == str(rank):
            EVENTS[event]()
        return original(self, epoch, batch)

    loop.StageLoop._update = update
    return train(folder, *more, double=double)


def _damaged() -> None:
    raise DataError("`images`: expected an image, got 'a.png'.")


EVENTS: dict[str, Callable[[], None]] = {
    "SIGTERM": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "SIGKILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "damaged image": _damaged,
}


def other_images(folder: Path) -> int:
    """`train`, where process 1 finds fewer images than process 0."""
    load = Digits.load

    def fewer(self: Digits) -> Splits:
        splits = load(self)
        if os.environ["RANK"] == "1":
            return dataclasses.replace(splits, train=splits.train.subset(range(60)))
        return splits

    Digits.load = fewer
    return train(folder)


def batch_norm(folder: Path, *more: str) -> tuple[int, dict[str, Any], list[int]]:
    """`train` of a tiny ResNet; with the exit status the last weights, and the seeds that the
    updates' dropout would have."""
    finish, backward = loop.StageLoop._finish, loop.StageLoop._backward
    state, seeds = dict[str, Any](), list[int]()

    def seeded(*arguments: Any, **options: Any) -> Any:
        seeds.append(torch.initial_seed())
        return backward(*arguments, **options)

    def watched(self: loop.StageLoop) -> Any:
        state.update({name: t.numpy().copy() for name, t in self.model.state_dict().items()})
        return finish(self)

    loop.StageLoop._finish, loop.StageLoop._backward = watched, seeded
    status = train(folder, *RESNET, *more, skip="--model.options")
    return status, state, seeds
