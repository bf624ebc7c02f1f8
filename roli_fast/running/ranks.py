"""Several processes that share one piece of work, as torchrun starts them."""

import os
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Ranks:
    """This process among all of them.

    Args:
        rank: its number.
        world: how many there are.
        local: its number among those on this machine.
        local_world: how many there are on this machine.
    """

    rank: int = 0
    world: int = 1
    local: int = 0
    local_world: int = 1

    @staticmethod
    def from_environment() -> "Ranks":
        """What torchrun says; alone without it."""
        if not {"RANK", "WORLD_SIZE"} <= set(os.environ):
            return Ranks()
        usual = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": os.environ["WORLD_SIZE"]} | os.environ
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        return Ranks(*(int(usual[name]) for name in names))

    @property
    def first(self) -> bool:
        """Whether this process writes the report."""
        return self.rank == 0

    @property
    def command(self) -> str:
        """How as many processes are started again."""
        return "python" if self.world == 1 else f"torchrun --nproc-per-node={self.local_world}"

    @property
    def own_gpu(self) -> bool:
        """Whether every process of this machine has a GPU to itself."""
        return torch.cuda.is_available() and self.local_world <= torch.cuda.device_count()

    def device(self, name: str) -> str:
        """The name of this process's device: with several GPUs, each process has its own."""
        several = self.world > 1 and torch.cuda.is_available() and name in ("auto", "cuda")
        return f"cuda:{self.local % torch.cuda.device_count()}" if several else name
