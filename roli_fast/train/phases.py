"""What an epoch is made of: its passes over the training images, each with an optimiser of its own,
and the exchange of gradients between processes."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from roli_fast.attacks import Attack
from roli_fast.running.distributed import Distributed
from roli_fast.train.checkpoint import changing_tensors, copy_tensors, put_tensors
from roli_fast.train.objectives import Adversarial, Objective
from roli_fast.train.stage import Job

SUMS = ("loss", "right", "images", "cosine", "sora", "looked")
"""Numbers that an update reports: the first three over its images, the rest by `Alignment.row`."""


@dataclass(frozen=True)
class Phase:
    """One pass over the training images of an epoch.

    Args:
        objective: what it minimises.
        attack: makes its training images, once the stage's clean epochs are over; None for none.
        optimizer: its own, over what trains.
        source: what its draws are derived from, beside what each is for and its place.
        name: "" for the stage's own, "natural" for the clean one of gradient projection.
    """

    objective: Objective
    attack: Attack | None
    optimizer: torch.optim.Optimizer
    source: tuple[int | str, ...]
    name: str = ""

    @property
    def prefix(self) -> str:
        """What its sums and metrics begin with."""
        return f"{self.name}_" if self.name else ""

    def add(self, rows: Tensor, sums: dict[str, float]) -> tuple[float, float]:
        """Add rows (n, 6), of `SUMS`, to its sums of the epoch; returns its mean loss and the share
        that is right so far."""
        for name, value in zip(SUMS, rows.sum(0).tolist(), strict=True):
            sums[self.prefix + name] = sums.get(self.prefix + name, 0.0) + value
        return self.means(sums)

    def means(self, sums: dict[str, float]) -> tuple[float, float]:
        """Its mean loss in an epoch and the share that is right."""
        loss, right, images = (sums[self.prefix + name] for name in ("loss", "right", "images"))
        return loss / images, right / images

    def alignment(self, sums: dict[str, float]) -> float | None:
        """Its mean alignment in an epoch; None where nothing was measured."""
        looked = sums.get(f"{self.prefix}looked", 0)
        return sums[f"{self.prefix}cosine"] / looked if looked else None


class Phases:
    """The phases of an epoch in their order, and the weights that wait for the merge at its end.

    Args:
        job: the stage; its tuning is applied to the model already.
        names: what trains.
        attack: the stage's, under the run's threat.
    """

    def __init__(self, job: Job, names: Sequence[str], attack: Attack | None) -> None:
        stage = job.stage
        self._model, self._names = job.model, names
        self._projection = stage.gradient_projection
        source = (job.seed, job.name)
        optimizer = stage.optimizer.build(job.model, names)
        self.all = [Phase(stage.objective, attack, optimizer, source)]
        if self._projection:
            if self._projection.natural:
                other = stage.optimizer.build(job.model, names)
                clean = Phase(Adversarial(), None, other, (*source, "natural"), "natural")
                self.all.insert(0, clean)
        self.kept: dict[str, dict[str, Tensor]] = {}
        """Tensors of `changing_tensors`: "start", both phases' first weights, and "natural"."""

    @property
    def own(self) -> Phase:
        """The stage's own, which is the last."""
        return self.all[-1]

    @property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """The optimisers by the names of their phases."""
        return {phase.name: phase.optimizer for phase in self.all}

    def settle(self, objective: Objective) -> None:
        """Let the stage's own minimise `objective`."""
        self.all[-1] = replace(self.own, objective=objective)

    def resume(self, kept: dict[str, dict[str, Tensor]]) -> None:
        """Go on with `kept` of a resume file."""
        device = next(self._model.parameters()).device
        self.kept = {
            name: {n: tensor.to(device) for n, tensor in tensors.items()}
            for name, tensors in kept.items()
        }

    def begin(self) -> None:
        """Called before a phase, also where a resume goes on within one."""
        if self._projection and not self.kept:
            self.kept = {"start": self._weights()}

    def end(self, phase: Phase) -> None:
        """Called after a phase: back to the first weights for the next one, or the merge."""
        if not self._projection:
            return
        start = self.kept["start"]
        if phase is not self.own:
            self.kept[phase.name] = self._weights()
            put_tensors(self._model, start)
            return
        natural = self.kept.get("natural", start)
        merged = self._projection.merged(start, natural, self._weights())
        put_tensors(self._model, merged)
        self.kept = {}

    def _weights(self) -> dict[str, Tensor]:
        return copy_tensors(changing_tensors(self._model, self._names))


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
        distributed: the processes.
    """

    def __init__(self, model: nn.Module, names: Iterable[str], distributed: Distributed) -> None:
        self._model, self._distributed = model, distributed
        self._trained = [model.get_parameter(name) for name in names]

    def begin(self) -> None:
        """Give all processes the weights and buffers of the first."""
        self._distributed.broadcast_(self._model.state_dict().values())

    def merge(self, weight: float) -> None:
        """Sum the gradients, and average the running statistics; call it after an `agree`.

        Args:
            weight: this process's share of the images of the update, in [0, 1]; its gradients are
                of a loss that was scaled with it.
        """
        if self._distributed.world_size == 1:
            return
        for buffer in self._statistics():
            buffer.mul_(weight)
        merged = [p.grad for p in self._trained if p.grad is not None] + [*self._statistics()]
        merged.sort(key=_dtype)  # stable: the same order everywhere
        for _, group in groupby(merged, key=_dtype):
            tensors = list(group)
            bucket = torch.cat([tensor.reshape(-1) for tensor in tensors])
            self._distributed.all_reduce_(bucket)
            pieces = bucket.split([tensor.numel() for tensor in tensors])
            for tensor, piece in zip(tensors, pieces, strict=True):
                tensor.copy_(piece.view(tensor.shape))

    def _statistics(self) -> Iterator[Tensor]:
        for module in self._model.modules():
            if isinstance(module, _BatchNorm) and module.training:
                for buffer in (module.running_mean, module.running_var):
                    if buffer is not None:
                        yield buffer


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype)
