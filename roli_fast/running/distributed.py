"""What several processes of one run exchange.

A process that ends closes its connections, which ends the others at their next exchange: each
says why in its own output, and torchrun stops whoever is left.
"""

import contextlib
import datetime
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from roli_fast.errors import PeerError
from roli_fast.running.ranks import Ranks

T = TypeVar("T")

PATIENCE = datetime.timedelta(minutes=30)
"""How long a process waits for the others, which may be reading data or writing a checkpoint."""


class Distributed:
    """This process and the others of its run; alone, nothing is exchanged.

    All processes must call the same methods in the same order.
    """

    def __init__(self, ranks: Ranks | None = None) -> None:
        self.ranks = ranks or Ranks()
        self.rank, self.world_size = self.ranks.rank, self.ranks.world

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files."""
        return self.ranks.first

    @property
    def device_backend(self) -> str:
        """What sums the gradients on a GPU: NCCL refuses two processes on one of them."""
        return "nccl" if self.ranks.own_gpu and dist.is_nccl_available() else "gloo"

    @contextlib.contextmanager
    def joined(
        self, device: torch.device, *, wait: datetime.timedelta = PATIENCE
    ) -> Iterator["Distributed"]:
        """Within: connected to the others; an exception that leaves the body ends them as well.

        Args:
            device: where this process computes, on which `sum_` is called.
            wait: the longest wait for another process, in any exchange.

        Raises:
            PeerError: the others are not there.
        """
        if self.world_size == 1:
            yield self
            return
        backend, whole, options = "gloo", False, dict[str, Any]()
        if device.type == "cuda":
            torch.cuda.set_device(device)
            backend = f"cpu:gloo,cuda:{self.device_backend}"
            if "nccl" in backend:  # else it guesses the device by the rank, and warns
                options["device_id"] = device
        options |= {"rank": self.rank, "world_size": self.world_size, "timeout": wait}
        with self._answers():
            dist.init_process_group(backend, **options)
        try:
            yield self
            self.all_max()  # nobody leaves while another still works or reads
            whole = True
        finally:
            # NCCL would wait for who is gone; the end of this process closes everything, too
            if whole or "nccl" not in backend:
                dist.destroy_process_group()

    def all_max(self, wish: int = 0) -> int:
        """The largest `wish` of all processes.

        Raises:
            PeerError: another one is gone, here as in every exchange.
        """
        if self.world_size == 1:
            return wish
        said = torch.tensor(wish)
        with self._answers():
            dist.all_reduce(said, dist.ReduceOp.MAX)
        return int(said)

    def patient_barrier(self) -> Callable[[Callable[[], None]], None]:
        """What waits until every process calls it, for hours where their work takes hours; all make
        it at the same time. It is given a function that it calls meanwhile, and that may raise."""
        if self.world_size == 1:
            return lambda _check: None
        with self._answers():
            group = dist.new_group(backend="gloo", timeout=datetime.timedelta(days=365))

        def wait(check: Callable[[], None]) -> None:
            with self._answers():
                work = dist.all_reduce(torch.zeros(()), group=group, async_op=True)
            assert work is not None, "it is asynchronous, and this process is in the group"
            while not work.is_completed():
                check()
                time.sleep(0.2)
            with self._answers():
                work.wait()

        return wait

    def broadcast(self, value: T) -> T:
        """What the first process gave."""
        return self.all_gather(value if self.is_main else None)[0]

    def all_gather(self, value: Any) -> list[Any]:
        """What every process gave, in order of rank."""
        values: list[Any] = [value] * self.world_size
        if self.world_size > 1:
            with self._answers():
                dist.all_gather_object(values, value)
        return values

    def all_gather_tensors(self, tensor: Tensor) -> list[Tensor]:
        """The CPU tensors of all processes, of one shape and type, in order of rank."""
        if self.world_size == 1:
            return [tensor]
        out = [torch.empty_like(tensor) for _ in range(self.world_size)]
        with self._answers():
            dist.all_gather(out, tensor.contiguous())
        return out

    def all_reduce_(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all processes, in place: on CPUs the same bits everywhere."""
        if self.world_size > 1:
            with self._answers():
                dist.all_reduce(tensor)
        return tensor

    def broadcast_(self, tensors: Iterable[Tensor]) -> None:
        """Give all processes the tensors of the first."""
        if self.world_size > 1:
            with self._answers(), torch.no_grad():
                for tensor in tensors:
                    whole = tensor.contiguous()
                    dist.broadcast(whole, 0)
                    if whole is not tensor:
                        tensor.copy_(whole)

    def merge_gradients_(self, model: nn.Module, weight: float) -> None:
        """Sum the gradients of a model that all processes train, in one exchange a dtype, and the
        running statistics of BatchNorm in training mode, each times `weight`.

        Every process normalises by the images of its own share, so with BatchNorm in training mode
        several processes train something slightly else than one.

        Args:
            model: the same in all processes but for its values.
            weight: this process's share of the images of the update, in [0, 1]; its gradients are
                of a loss that was scaled with it.
        """
        if self.world_size == 1:
            return
        modules = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training]
        buffers = [b for m in modules for b in (m.running_mean, m.running_var) if b is not None]
        for buffer in buffers:
            buffer.mul_(weight)
        merged = [p.grad for p in model.parameters() if p.grad is not None] + buffers
        merged.sort(key=_dtype)  # stable: the same order everywhere
        for _, group in groupby(merged, key=_dtype):
            tensors = list(group)
            bucket = self.all_reduce_(torch.cat([tensor.reshape(-1) for tensor in tensors]))
            pieces = bucket.split([tensor.numel() for tensor in tensors])
            for tensor, piece in zip(tensors, pieces, strict=True):
                tensor.copy_(piece.view(tensor.shape))

    @contextlib.contextmanager
    def _answers(self) -> Iterator[None]:
        """An exchange that fails means that another process is gone or hangs."""
        try:
            yield
        except (RuntimeError, ValueError) as error:
            words = (str(error).splitlines() or [type(error).__name__])[0]
            raise PeerError(
                f"process {self.rank} of {self.world_size} lost another one, which ended or did "
                f"not answer in time ({words}). Its own output says why, if it could."
            ) from error


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype)
