"""Finds, on a CPU, what would make the host wait for a GPU."""

import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_READS = {
    "_local_scalar_dense",  # item(), int(), float(), bool()
    "nonzero",
    "equal",
    "masked_select",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "lift_fresh",  # torch.tensor(...), new_tensor(...): a copy from pageable memory
}
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}


class Waits(TorchDispatchMode):
    """Within, notes every operation after which the host knows numbers, or uploads some.

    `places` holds for each the operation and the line of the package that asked for it, `seen`
    counts all operations. What happens inside an operation, or below torch, is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []
        self.seen = 0
        self.paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen += 1
        name = func.overloadpacket.__name__
        masked = name in _INDEXING and any(
            isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1]
        )
        if (name in _READS or masked) and not self.paused:
            frames = [f for f in traceback.extract_stack() if "/roli_fast/" in f.filename]
            place = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "elsewhere"
            self.places.append(f"{name} {place}")
        return func(*args, **(kwargs or {}))


def waits(run: Callable[[], object]) -> list[str]:
    """What `run` would have waited for."""
    with Waits() as found:
        run()
    return found.places
