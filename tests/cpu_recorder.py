"""What a CUDA graph does, on the CPU: operations recorded with their memory, and run again on it.

No Python of the model or of the attack runs in a replay, inputs are read and results are written
where they lay when it was recorded, and numbers are those of then.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from roli_fast.engine import graph

HOST = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
"""What waits for a device."""


class _Taken(TorchDispatchMode):
    """Notes every operation, the package's own kernels among them."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[Any]]] = []

    @classmethod
    def is_infra_mode(cls) -> bool:
        """Compiled functions run under it as they are, as in a graph: not uncompiled."""
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in HOST:
            raise RuntimeError("called a synchronizing CUDA operation")
        found = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, tree_leaves(found)))
        return found

    def replay(self) -> None:
        for func, args, kwargs, outputs in self.calls:
            again = tree_leaves(func(*args, **kwargs))
            for old, new in zip(outputs, again, strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class CpuRecorder:
    """In the place of `graph.CudaRecorder`; `log` says what came."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.problem: Exception | None = None

    def record(
        self, work: Callable[[], tuple[Tensor, ...]], *, limited: bool
    ) -> tuple[Callable[[], None], tuple[Tensor, ...]]:
        self.log.append("record limited" if limited else "record")
        if self.problem is not None:
            raise self.problem
        taken = _Taken()
        with torch.random.fork_rng([]), patch("torch.compiler.is_compiling", lambda: True), taken:
            outputs = work()

        def replay() -> None:
            self.log.append("replay")
            taken.replay()

        return replay, outputs


@contextlib.contextmanager
def recording(monkeypatch: pytest.MonkeyPatch) -> Iterator[CpuRecorder]:
    """Within, the CPU is a device whose passes are recorded."""
    recorder = CpuRecorder()
    with monkeypatch.context() as patched:
        patched.setitem(graph.RECORDERS, "cpu", lambda device: recorder)
        yield recorder
