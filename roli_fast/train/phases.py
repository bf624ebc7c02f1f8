"""What an epoch of a stage consists of: one pass over its images, or with gradient projection two
from the same weights, and their merge."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from roli_fast.attacks import Attack
from roli_fast.train.checkpoint import changing_tensors, copy_tensors, put_tensors
from roli_fast.train.objectives import Adversarial, Objective
from roli_fast.train.stage import Job


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
        """Add rows (n, 3) of summed loss, right and images to its sums of the epoch; returns its
        mean loss and the share that is right so far."""
        for name, value in zip(("loss", "right", "images"), rows.sum(0).tolist(), strict=True):
            sums[self.prefix + name] = sums.get(self.prefix + name, 0.0) + value
        return self.means(sums)

    def means(self, sums: dict[str, float]) -> tuple[float, float]:
        """Its mean loss in an epoch and the share that is right."""
        loss, right, images = (sums[self.prefix + name] for name in ("loss", "right", "images"))
        return loss / images, right / images


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
            self._projection.check(job.model.state_dict())
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
        """The optimisers beside the stage's own, by the names of their phases."""
        return {phase.name: phase.optimizer for phase in self.all[:-1]}

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
