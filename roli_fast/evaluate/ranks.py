"""Several processes that share one evaluation, as torchrun starts them.

They agree once, at the beginning; from then on each works on chunks of its own, and files tell
which are done. So no process waits inside a collective, and a resume may have another number.
"""

import datetime
import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from roli_fast.errors import ConfigError, describe

_WAIT = datetime.timedelta(hours=1)
"""For the others to load data and model."""


@dataclass(frozen=True)
class Ranks:
    """This process among all of them; `local` counts those on this machine."""

    rank: int = 0
    world: int = 1
    local: int = 0

    @staticmethod
    def from_environment() -> "Ranks":
        """What torchrun says; alone without it.

        Raises:
            ConfigError: its variables make no sense.
        """
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        if not {"RANK", "WORLD_SIZE"} <= set(os.environ):
            return Ranks()
        try:
            return Ranks(*(int(os.environ.get(name, "0")) for name in names))
        except ValueError as error:
            raise ConfigError(
                describe(", ".join(names), "integers, as torchrun sets them", error)
            ) from error

    @property
    def first(self) -> bool:
        """Whether this process writes the report."""
        return self.rank == 0

    def device(self, name: str) -> str:
        """The name of this process's device: with several GPUs, each process has its own."""
        several = self.world > 1 and torch.cuda.is_available() and name in ("auto", "cuda")
        return f"cuda:{self.local % torch.cuda.device_count()}" if several else name

    def share(self, value: Any) -> list[Any]:
        """What every process gave, in order of rank. All must call it, once."""
        if self.world == 1:
            return [value]
        dist.init_process_group("gloo", timeout=_WAIT)
        try:
            values: list[Any] = [None] * self.world
            dist.all_gather_object(values, value)
            dist.barrier()
            return values
        finally:
            dist.destroy_process_group()
