"""The average of a stage's weights over its updates: an exponential moving one (EMA), or the mean
(SWA, Izmailov et al. 2018, arXiv:1803.05407)."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from roli_fast.errors import ArgumentError, describe
from roli_fast.train.checkpoint import Tensors, changing_tensors, copy_tensors, restore_tensors


@dataclass(frozen=True)
class Averaging:
    """What trains is averaged over the updates. The average is validated beside the weights
    themselves and saved as averaged.safetensors; the better of the two is the stage's result.

    Running statistics of BatchNorm are averaged like weights: those of the updates are of the
    attacked images, which a pass over the training images to renew them would not see.

    Args:
        decay: share of the average that an update keeps (EMA): at most (1 + n) / (10 + n) after n
            updates, so that the first weights are soon forgotten. null gives all equal weights.
        start: part of the stage, in [0, 1), after which averaging begins; 0.75 is usual with null.
    """

    decay: float | None = 0.999
    start: float = 0.0

    def __post_init__(self) -> None:
        if self.decay is not None and not 0 <= self.decay < 1:
            raise ArgumentError(describe("averaging.decay", "a number in [0, 1)", self.decay))
        if not 0 <= self.start < 1:
            raise ArgumentError(describe("averaging.start", "a number in [0, 1)", self.start))

    def kept(self, count: int) -> float:
        """Share of an average of `count` weights that the next ones leave of it."""
        if self.decay is None or count == 0:
            return count / (count + 1)
        return min(self.decay, (1 + count) / (10 + count))


class Average:
    """A stage's average so far.

    Args:
        averaging: how it is made.
        model: whose tensors are averaged.
        names: of the parameters that train; all buffers are averaged with them.
        updates: of the whole stage.
    """

    def __init__(
        self, averaging: Averaging, model: nn.Module, names: Iterable[str], updates: int
    ) -> None:
        self.averaging, self.model = averaging, model
        self.current = changing_tensors(model, names)
        self.first = math.ceil(averaging.start * updates)
        self.tensors: Tensors = {}  # empty before the first update that counts
        self.count = 0
        self.raw: Tensors = {}  # the model's own, while the average stands in it

    def add(self, position: int) -> None:
        """Take the weights after the update at `position` into the average."""
        if position < self.first:
            return
        if self.count == 0:
            self.tensors = copy_tensors(self.current)
        floating = [name for name, t in self.current.items() if t.is_floating_point()]
        mix = get_ema_multi_avg_fn(self.averaging.kept(self.count))
        mix([self.tensors[n] for n in floating], [self.current[n] for n in floating], None)
        with torch.no_grad():
            for name in self.current.keys() - set(floating):  # counters
                self.tensors[name].copy_(self.current[name])
        self.count += 1

    def forget(self) -> None:
        """Begin anew with the next update."""
        self.tensors, self.count = {}, 0

    @contextmanager
    def in_model(self) -> Iterator[None]:
        """Within: the model has the averaged tensors; its own are `raw`."""
        self.raw = copy_tensors(self.current)
        restore_tensors(self.model, self.tensors)
        try:
            yield
        finally:
            restore_tensors(self.model, self.raw)
            self.raw = {}
