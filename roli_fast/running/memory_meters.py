"""How much memory work takes, and how much is left, on a GPU and on the CPU."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import WeakSet, finalize

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class CudaMeter:
    """By the counters of torch's allocator and of the driver."""

    tries = 3
    margin = 0.95
    """Of what is left; the rest goes to fragments and to libraries' workspaces."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.name = str(device)

    def free(self) -> int:
        """Bytes left on the device. What torch still reserves after emptying its cache belongs to
        recordings, or lies between tensors: nobody can count on it."""
        torch.cuda.empty_cache()
        return int(self.margin * torch.cuda.mem_get_info(self._device)[0])

    def peak(self, work: Callable[[], object]) -> int:
        """The most bytes allocated at once beyond those before `work`."""
        torch.cuda.synchronize(self._device)
        before = torch.cuda.memory_allocated(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        work()
        torch.cuda.synchronize(self._device)
        return torch.cuda.max_memory_allocated(self._device) - before


class CpuMeter:
    """By the tensors that operations return, and by what the system says is available.

    Nothing near the limit is tried: the system may end the process instead of refusing memory.

    Args:
        root: where /proc and /sys are.
    """

    name = "this machine"
    tries = 0
    margin = 0.8

    def __init__(self, root: Path) -> None:
        self._root = root

    def free(self) -> int | None:
        """Bytes that are available to this process; None but on Linux."""
        left = [bytes_ for bytes_ in (self._available(), self._allowed()) if bytes_ is not None]
        return int(self.margin * min(left)) if left else None

    def peak(self, work: Callable[[], object]) -> int:
        """The most bytes in new tensors at once; an operation's own workspaces are not seen."""
        with _LiveTensors() as live:
            work()
        return live.most

    def _available(self) -> int | None:
        for line in self._lines("proc/meminfo"):
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
        return None

    def _allowed(self) -> int | None:
        """What is left of the control group's limit, where it has one."""
        limit, used = (self._lines(f"sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
        if not limit or not used or limit[0] == "max":
            return None
        return max(int(limit[0]) - int(used[0]), 0)

    def _lines(self, name: str) -> list[str]:
        try:
            return (self._root / name).read_text(encoding="utf-8").split("\n")
        except OSError:
            return []


class _LiveTensors(TorchDispatchMode):
    """Adds up the memory of all tensors that operations return, as long as they live."""

    def __init__(self) -> None:
        super().__init__()
        self.most = self._now = 0
        self._seen: WeakSet[Any] = WeakSet()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Every operation inside `with`, those of a backward among them."""
        given = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if _counts(t)}
        found = func(*args, **(kwargs or {}))
        for value in tree_leaves(found):
            if _counts(value):
                self._add(value.untyped_storage(), given)
        return found

    def _add(self, storage: Any, given: set[int]) -> None:
        if id(storage) in given or storage in self._seen:
            return
        self._seen.add(storage)
        self._now += storage.nbytes()
        self.most = max(self.most, self._now)
        finalize(storage, self._drop, storage.nbytes()).atexit = False

    def _drop(self, size: int) -> None:
        self._now -= size


def _counts(value: object) -> bool:
    return isinstance(value, Tensor) and value.layout is torch.strided
