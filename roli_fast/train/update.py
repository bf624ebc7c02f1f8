"""One update of a stage: this process's images, the objective, and the optimiser's step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from roli_fast.data import Batch, shares
from roli_fast.engine.batch_norm import mended
from roli_fast.running.team import Team
from roli_fast.seeds import derive_seed, derived_generator
from roli_fast.train.objectives import Objective
from roli_fast.train.phases import Phase
from roli_fast.train.replicas import Replicas
from roli_fast.train.stage import Job

ROW = 3
"""Numbers that an update reports: summed loss, right, images."""


@dataclass(frozen=True)
class Place:
    """Where an update stands.

    Args:
        phase: whose it is.
        epoch: from 0.
        position: updates of this phase before it, over all epochs.
        images: its images, over all processes.
    """

    phase: Phase
    epoch: int
    position: int
    images: int


class Updates:
    """Makes the updates of a stage.

    Args:
        job: the stage; its tuning is applied to the model already.
        names: what trains.
        team: the processes that share each update.
        device: where the model is.
    """

    def __init__(self, job: Job, names: Sequence[str], team: Team, device: torch.device) -> None:
        self.job, self.stage, self.model, self.team = job, job.stage, job.model, team
        self.replicas = Replicas(job.model, names, team)
        self._counts = torch.zeros(job.stage.objective.counters, dtype=torch.float64, device=device)

    @property
    def counts(self) -> list[float]:
        """What the stage's own objective has counted so far, over all processes."""
        return self._counts.tolist()

    @counts.setter
    def counts(self, saved: list[float]) -> None:
        """Go on from a resume file's."""
        if saved:
            self._counts = self._counts.new_tensor(saved)

    def step(self, place: Place, batch: Batch, meet: Callable[[], None]) -> Tensor:
        """One optimiser step on this process's images; returns (summed loss, right, images) of
        them, still on the device.

        Args:
            place: where it stands.
            batch: the images.
            meet: called before anything waits for the other processes; raises their errors.
        """
        phase, rank, images = place.phase, self.team.rank, place.images
        # dropout and DropPath; the caller's state is forked away
        where = (place.position, rank) if rank else (place.position,)
        torch.manual_seed(derive_seed(*phase.source, "update", *where))
        # with fewer images than processes, some repeat what another does, and count for nothing
        world = self.team.world
        own = rank < len(shares(images, world))
        phase.optimizer.zero_grad(set_to_none=True)
        rows: list[Tensor] = []
        runs = shares(len(batch.y), self.stage.accumulate)
        objective = self._objective(place)
        for run in runs:
            part = Batch(batch.x[run], batch.y[run], batch.ids[run])
            weight = own * len(part.y) / images
            rows.append(self.backward(place, objective, part, weight=weight))
        meet()
        self.replicas.merge(own * len(batch.y) / images)
        phase.optimizer.step()
        row = torch.stack(rows).sum(0) * own
        if len(row) > ROW:
            self._counts = self._counts + self.team.sum_(row[ROW:].clone())
        return row[:ROW]

    def _objective(self, place: Place) -> Objective:
        """That of one update, the same in all processes."""
        objective = place.phase.objective
        if not objective.draws:
            return objective
        generator = derived_generator(*place.phase.source, "objective", place.position)
        return objective.chosen(self._counts.cpu(), generator)

    def backward(self, place: Place, objective: Objective, part: Batch, *, weight: float) -> Tensor:
        """Forward and backward: adds `weight` times the gradient of the mean loss; the row of
        `step`, and after it what the objective counts."""
        phase, device = place.phase, part.x.device
        # one source an epoch, in which an image draws by its id: parts and batches play no part
        generator = derived_generator(*phase.source, "attack", place.epoch, device=device)
        attack = phase.attack if place.epoch >= self.stage.clean_epochs else None
        engine = self.stage.engine
        with engine.training(device):
            terms = objective(self.model, part, attack, generator, engine)
        mended(terms.loss * weight).backward()
        right = (terms.logits.argmax(1) == part.y).sum()
        count = len(part.y)
        loss = terms.loss.detach().double()
        row = torch.stack([loss * count, right.double(), torch.full_like(loss, count)])
        return row if terms.counts is None else torch.cat([row, terms.counts])
