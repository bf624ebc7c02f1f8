"""One model in every process of a run, kept the same bit for bit."""

import logging
from collections.abc import Iterable, Iterator
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from roli_fast.running.team import Team

logger = logging.getLogger(__name__)


class Replicas:
    """This process's model beside those of the others.

    Only what trains is exchanged: after each backward the gradients of the trainable tensors, in
    one sum a dtype, and the running statistics of BatchNorm where it is in training mode. Every
    process normalises by the images of its own share; the running statistics are the mean over
    processes. So with BatchNorm in training mode several processes train something slightly else
    than one.

    Args:
        model: the model, the same in all processes but for its values.
        names: its trainable parameters.
        team: the processes.
    """

    def __init__(self, model: nn.Module, names: Iterable[str], team: Team) -> None:
        self._model, self._team = model, team
        parameters = dict(model.named_parameters())
        self._trained = [parameters[name] for name in names]

    def begin(self) -> None:
        """Give all processes the weights and buffers of the first."""
        self._team.copy_first_(self._model.state_dict().values())

    def merge(self, weight: float) -> None:
        """Sum the gradients, and average the running statistics; call it after an `agree`.

        Args:
            weight: this process's share of the images of the update, in [0, 1]; its gradients are
                of a loss that was scaled with it.
        """
        if self._team.world == 1:
            return
        for buffer in self._statistics():
            buffer.mul_(weight)
        merged = [p.grad for p in self._trained if p.grad is not None] + [*self._statistics()]
        merged.sort(key=_dtype)  # stable: the same order everywhere
        for _, group in groupby(merged, key=_dtype):
            tensors = list(group)
            bucket = torch.cat([tensor.reshape(-1) for tensor in tensors])
            self._team.sum_(bucket)
            pieces = bucket.split([tensor.numel() for tensor in tensors])
            for tensor, piece in zip(tensors, pieces, strict=True):
                tensor.copy_(piece.view(tensor.shape))

    def _statistics(self) -> Iterator[Tensor]:
        for module in self._model.modules():
            if isinstance(module, _BatchNorm) and module.training:
                for buffer in (module.running_mean, module.running_var):
                    if buffer is not None:
                        yield buffer


def say_what_differs(model: nn.Module, parts: int, world: int) -> None:
    """Log why an update is not that of one large batch in one process, where it is not."""
    split = parts > 1 or world > 1
    normed = any(isinstance(m, _BatchNorm) and m.training for m in model.modules())
    if split and normed:
        logger.info(
            "BatchNorm is in training mode: it normalises by the images of one part of an update, "
            "of %d parts in each of %d processes, so the result is not that of one large batch.",
            parts,
            world,
        )


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype)
