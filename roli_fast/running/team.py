"""What several processes of one run tell each other, and how all learn of the end of one.

Every exchange but the sums of gradients begins with a word on whether anybody failed. So an error
in one process is raised in all of them at their next exchange, and not after a timeout; a process
that dies without a word closes its connections, which ends the others as well.
"""

import contextlib
import datetime
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from roli_fast.errors import PeerError, RoliFastError
from roli_fast.running.ranks import Ranks

T = TypeVar("T")

PATIENCE = datetime.timedelta(minutes=30)
"""How long a process waits for the others, which may be reading data or writing a checkpoint."""


class Team:
    """This process and the others of its run; alone, nothing is exchanged.

    All processes must call the same methods in the same order.
    """

    def __init__(self, ranks: Ranks | None = None) -> None:
        self.ranks = ranks or Ranks()
        self.rank, self.world = self.ranks.rank, self.ranks.world
        self._told = False  # a failure, to or by all the others
        self._lost = False  # one of them is gone

    @property
    def leads(self) -> bool:
        """Whether this process writes the files."""
        return self.ranks.first

    @property
    def device_backend(self) -> str:
        """What sums the gradients on a GPU: NCCL refuses two processes on one of them."""
        return "nccl" if self.ranks.own_gpu and dist.is_nccl_available() else "gloo"

    @contextlib.contextmanager
    def joined(
        self, device: torch.device, *, wait: datetime.timedelta = PATIENCE
    ) -> Iterator["Team"]:
        """Within: connected to the others, who learn of an exception that leaves the body.

        Args:
            device: where this process computes, on which `sum_` is called.
            wait: the longest wait for another process, in any exchange.

        Raises:
            PeerError: the others are not there.
        """
        if self.world == 1:
            yield self
            return
        backend = "gloo"
        if device.type == "cuda":
            torch.cuda.set_device(device)
            backend = f"cpu:gloo,cuda:{self.device_backend}"
        with self._answers():
            dist.init_process_group(backend, rank=self.rank, world_size=self.world, timeout=wait)
        try:
            yield self
            self.agree()  # nobody leaves while another still works or reads
        except Exception as error:
            self.fail(error)
            raise
        finally:
            # NCCL would wait for who is gone; the end of this process closes everything, too
            if not (self._lost and "nccl" in backend):
                dist.destroy_process_group()

    def agree(self, wish: int = 0) -> int:
        """The largest `wish` of all processes, and a safe place to learn that one failed.

        Raises:
            RoliFastError: of another process, with its number; `PeerError` for other exceptions.
            PeerError: one is gone.
        """
        return self._exchange(wish, None) if self.world > 1 else wish

    def fail(self, error: Exception) -> None:
        """Tell the others of `error`, which they raise where they next exchange something.

        Does nothing where all know: each failure is told once.
        """
        if self.world > 1 and not self._told:
            with contextlib.suppress(PeerError):  # `error` matters more
                self._exchange(0, error)

    def from_first(self, value: T) -> T:
        """What the first process gave."""
        return self.gather(value if self.leads else None)[0]

    def gather(self, value: Any) -> list[Any]:
        """What every process gave, in order of rank."""
        self.agree()
        return self._gather(value)

    def gather_tensors(self, tensor: Tensor) -> list[Tensor]:
        """The CPU tensors of all processes, of one shape and type, in order of rank."""
        self.agree()
        if self.world == 1:
            return [tensor]
        out = [torch.empty_like(tensor) for _ in range(self.world)]
        with self._answers():
            dist.all_gather(out, tensor.contiguous())
        return out

    def total(self, tensor: Tensor) -> Tensor:
        """The sum of a CPU tensor over all processes, the same bits everywhere."""
        self.agree()
        return self.sum_(tensor)

    def sum_(self, tensor: Tensor) -> Tensor:
        """`total` in place, on any device and without the word before it: call it after `agree`."""
        if self.world > 1:
            with self._answers():
                dist.all_reduce(tensor)
        return tensor

    def copy_first_(self, tensors: Iterable[Tensor]) -> None:
        """Give all processes the tensors of the first."""
        self.agree()
        if self.world > 1:
            with self._answers(), torch.no_grad():
                for tensor in tensors:
                    whole = tensor.contiguous()
                    dist.broadcast(whole, 0)
                    if whole is not tensor:
                        tensor.copy_(whole)

    def _exchange(self, wish: int, error: Exception | None) -> int:
        said = torch.tensor([error is not None, wish])
        with self._answers():
            dist.all_reduce(said, dist.ReduceOp.MAX)
        if not said[0]:
            return int(said[1])
        self._told = True
        told = self._gather(_portable(error))
        if error is None:
            raise next(_as_here(rank, other) for rank, other in enumerate(told) if other)
        return 0

    def _gather(self, value: Any) -> list[Any]:
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        with self._answers():
            dist.all_gather_object(values, value)
        return values

    @contextlib.contextmanager
    def _answers(self) -> Iterator[None]:
        """An exchange that fails means that another process is gone or hangs."""
        try:
            yield
        except (RuntimeError, ValueError) as error:
            self._lost = True
            words = (str(error).splitlines() or [type(error).__name__])[0]
            raise PeerError(
                f"process {self.rank} of {self.world} lost another one, which ended or did not "
                f"answer in time ({words}). Its own output says why, if it could."
            ) from error


def _portable(error: Exception | None) -> tuple[Exception | None, str] | None:
    """What the others are told: an error of ours as it is, of any other kind its words."""
    if error is None:
        return None
    own = isinstance(error, RoliFastError) and not isinstance(error, PeerError)
    return (error if own else None, f"{type(error).__name__}: {error}")


def _as_here(rank: int, told: tuple[Exception | None, str]) -> Exception:
    error, words = told
    if error is None:
        return PeerError(f"process {rank} stopped: {words}")
    return type(error)(f"process {rank}: {error}", *error.args[1:])
