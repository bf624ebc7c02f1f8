"""The one training loop: every stage of every method runs through it."""

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from roli_fast.attacks import SORA, Attack
from roli_fast.data import Batch, batches, num_batches, shares
from roli_fast.engine.batch_norm import mended
from roli_fast.engine.tf32 import set_tf32
from roli_fast.errors import DataError, InterruptedRunError, NonFiniteLossError, OutOfMemoryError
from roli_fast.evaluate import Evaluation, columns, evaluate
from roli_fast.files import write_json
from roli_fast.models import save_head, save_model
from roli_fast.peft import Linear
from roli_fast.seeds import derive_seed, derived_generator
from roli_fast.threat import known_values
from roli_fast.train import checkpoint
from roli_fast.train.alignment import Alignment, remembered, watches
from roli_fast.train.context import Context
from roli_fast.train.linear_probe import rated
from roli_fast.train.objectives import Objective, Step
from roli_fast.train.phases import SUMS, Phase, Phases, Replicas
from roli_fast.train.stage import Job, StageResult, measured

BLOCK = 16
"""Updates whose losses come to the host at once: a GPU is waited for no more often."""

logger = logging.getLogger(__name__)


class StageLoop:
    """Trains one stage, validates it, and can stop and go on at any update.

    Several processes go through it side by side, each with its share of every batch: what one
    decides by the clock or a signal is agreed on by all, and the first writes the files.
    """

    def __init__(self, job: Job, context: Context) -> None:
        self.job, self.context, self.distributed = job, context, context.distributed
        self.model, self.stage = job.model, job.stage
        self.names = job.stage.prepare(job.model, seed=job.seed)
        self.attack = job.stage.attack.under(job.threat) if job.stage.attack else None
        job.stage.objective.check(self.attack)
        self.phases = Phases(job, self.names, self.attack)
        self.replicas = Replicas(job.model, self.names, context.distributed)
        self.optimizer = self.phases.own.optimizer
        self.peak = [group["lr"] for group in self.optimizer.param_groups]
        train, size = job.splits.train, job.stage.batch_size
        # BatchNorm cannot take a last batch of one image
        self.drop_last = len(train) > 1 and len(train) % size == 1
        self.steps = num_batches(train, batch_size=size, drop_last=self.drop_last)
        self.images = job.stage.epochs * len(self.phases.all) * (len(train) - self.drop_last)
        self.progress = checkpoint.Progress()
        # what the stage's own objective has counted so far, over all processes
        self.counts = torch.zeros(
            job.stage.objective.counters, dtype=torch.float64, device=context.device
        )
        self.best: dict[str, Tensor] = {}
        self.saved_at = time.monotonic()
        self.rows: list[Tensor] = []
        self.checked = False
        self.due = False

    @property
    def resume_path(self) -> Path:
        """The file from which an interrupted stage goes on."""
        return self.job.folder / "resume.safetensors"

    @property
    def phase(self) -> Phase:
        """The phase of the next update, or of the last one."""
        return self.phases.all[min(self.progress.phase, len(self.phases.all) - 1)]

    def run(self) -> StageResult:
        """Train to the end and leave the best weights in the model.

        Raises:
            NonFiniteLossError: the loss became NaN or infinite.
            InterruptedRunError: a signal came; the position is saved.
            OutOfMemoryError: an update or validation does not fit; the position is saved.
        """
        self._resume()
        self.stage.tuning.train_mode(self.model)
        devices = [self.context.device] if self.context.device.type == "cuda" else []
        with self._bar() as bar, torch.random.fork_rng(devices):
            try:
                with self.stage.memory_guard(self.job.name, self.context.device):
                    self._epochs(bar)
            # a damaged image, or too large a batch, must not cost the work before it
            except (DataError, OutOfMemoryError):
                if self.distributed.world_size == 1:  # which the others would not take part in
                    self._flush(self.progress.epoch, bar)
                    self._save()
                raise
        return self._finish()

    def _epochs(self, bar: tqdm) -> None:
        """What is left of the stage."""
        self._settle()
        for epoch in range(self.progress.epoch, self.stage.epochs):
            while self.progress.phase < len(self.phases.all):
                self.phases.begin()
                self._train_epoch(epoch, bar)
                self._finish_phase(epoch)
            self._finish_epoch(epoch)

    def _resume(self) -> None:
        if self.resume_path.exists():
            saved = checkpoint.load_resume(self.resume_path)
            with checkpoint.explained(self.resume_path):
                place = (saved.progress.epoch, saved.progress.phase, saved.progress.step)
                most = (self.stage.epochs, len(self.phases.all), self.steps)
                if not all(0 <= at <= end for at, end in zip(place, most, strict=True)):
                    raise ValueError(f"epoch, phase and step are {place} of {most}")
                model, self.best = saved.tensors.pop("model"), saved.tensors.pop("best")
                checkpoint.restore_tensors(self.model, model, self.resume_path)
                for name, optimizer in self.phases.optimizers.items():
                    checkpoint.restore_optimizer(optimizer, saved.optimizers.get(name, {}))
                self.phases.resume(saved.tensors)
            self.progress = saved.progress
            if saved.progress.counts:
                self.counts = self.counts.new_tensor(saved.progress.counts)
        self.replicas.begin()
        self.context.recorder.forget(self.job.stage_id, self.progress.epoch)

    def _settle(self) -> None:
        """Measure what the objective wants to know of the model before the first update."""
        objective, found = self.stage.objective, self.progress.accuracies
        if not objective.needs_accuracies:
            return
        for threat in measured(self.attack, self.job.threat):
            if threat.norm not in found:
                result = self._evaluated([self.job.validation.under(threat)])
                (found[threat.norm],) = result.robust_accuracy.values()
        self.phases.settle(objective.settled(found))
        shown = ", ".join(f"{norm} {100 * value:.1f} %" for norm, value in found.items())
        own = self.phases.own.objective
        logger.info("stage '%s' starts at robust accuracy %s: %s", self.job.name, shown, own)

    def _bar(self) -> tqdm:
        title = self.context.remaining.title(self.job.stage_id)
        done = self.progress.train_images
        return self.context.bar(title, total=self.images, initial=done)

    def _train_epoch(self, epoch: int, bar: tqdm) -> None:
        """One phase of an epoch, or what is left of it."""
        self.stage.tuning.train_mode(self.model)
        started = time.perf_counter()
        for batch in self._timed(self._batches(epoch)):
            count = self._images()
            with self._looks(epoch) if self.phase.attack else nullcontext():
                self.rows.append(self._update(epoch, batch))
            self.progress.step += 1
            bar.update(count)
            if len(self.rows) >= BLOCK or self.progress.step == self.steps or self.due:
                seconds = self._flush(epoch, bar, since=started)
                self.progress.train_seconds += seconds
                if self.due:
                    self._save_and_check()
                started = time.perf_counter()

    def _timed(self, source: Iterable[Batch]) -> Iterator[Batch]:
        """The batches; the seconds for which each was waited are added up.

        The start counts as well: workers that are forked, the first batch that they decode. Where a
        GPU computes meanwhile, its host waits and it does not: they are an upper bound then.
        """
        started = time.perf_counter()
        for batch in source:
            self.progress.data_wait_seconds += time.perf_counter() - started
            yield batch
            started = time.perf_counter()

    def _batches(self, epoch: int) -> Iterator[Batch]:
        return batches(
            self.job.splits.train,
            batch_size=self.stage.batch_size,
            seed=derive_seed(*self.phase.source, "data"),
            epoch=epoch,
            shuffle=True,
            drop_last=self.drop_last,
            start=self.progress.step,
            workers=self.context.workers,
            device=self.context.device,
            rank=self.distributed.rank,
            world=self.distributed.world_size,
        )

    def _images(self) -> int:
        """Images of the next update, over all processes."""
        size = self.stage.batch_size
        return min(size, len(self.job.splits.train) - self.progress.step * size)

    def _attacks(self, epoch: int) -> bool:
        """Whether the phase's images are attacked in this epoch."""
        return self.phase.attack is not None and epoch >= self.stage.clean_epochs

    def _looks(self, epoch: int) -> AbstractContextManager[None]:
        """Whether the attack looks at the values of images and labels: in its first update alone.

        A loader's images are in [0, 1] and its labels those of the splits.
        """
        low, high = getattr(self.attack, "bounds", None) or (1.0, 0.0)
        known = self.checked and low <= 0 and high >= 1
        self.checked |= epoch >= self.stage.clean_epochs
        return known_values() if known else nullcontext()

    def _update(self, epoch: int, batch: Batch) -> Tensor:
        """One optimiser step on this process's images; returns their `SUMS`, on the device."""
        phase, rank, images = self.phase, self.distributed.rank, self._images()
        position = epoch * self.steps + self.progress.step
        factor = self._lr_factor(position)
        for group, peak in zip(phase.optimizer.param_groups, self.peak, strict=True):
            group["lr"] = peak * factor
        # dropout and DropPath; the caller's state is forked away
        where = (position, rank) if rank else (position,)
        torch.manual_seed(derive_seed(*phase.source, "update", *where))
        # with fewer images than processes, some repeat what another does, and count for nothing
        own = rank < len(shares(images, self.distributed.world_size))
        phase.optimizer.zero_grad(set_to_none=True)
        objective, rows = self._objective(position), list[Tensor]()
        attack = self._attack(epoch)
        for run in shares(len(batch.y), self.stage.accumulate):
            part = Batch(batch.x[run], batch.y[run], batch.ids[run])
            rows.append(self._backward(epoch, objective, attack, part, own * len(part.y) / images))
        # before anything waits for the others: whether all save now
        self.due = self.context.wanted(save=self._checkpoint_due())
        self.replicas.merge(own * len(batch.y) / images)
        phase.optimizer.step()
        row = torch.stack(rows).sum(0) * own
        if len(row) > len(SUMS):
            self.counts = self.counts + self.distributed.all_reduce_(row[len(SUMS) :].clone())
        if isinstance(attack, SORA):
            own_row = self.distributed.all_reduce_(row[3 : len(SUMS)].clone())
            self.progress.alignment = remembered(attack, own_row)
        return row[: len(SUMS)]

    def _objective(self, position: int) -> Objective:
        """That of one update, the same in all processes."""
        objective = self.phase.objective
        if not objective.draws:
            return objective
        generator = derived_generator(*self.phase.source, "objective", position)
        return objective.chosen(self.counts.cpu(), generator)

    def _attack(self, epoch: int) -> Attack | None:
        """That of the next update: SORA with its moving average."""
        attack = self.phase.attack if self._attacks(epoch) else None
        if isinstance(attack, SORA) and self.progress.alignment is not None:
            return replace(attack, alignment=self.progress.alignment)
        return attack

    def _backward(
        self, epoch: int, objective: Objective, attack: Attack | None, part: Batch, weight: float
    ) -> Tensor:
        """Forward and backward: adds `weight` times the gradient of the mean loss; the row of
        `_update`, and after it what the objective counts."""
        device, phase, engine = part.x.device, self.phase, self.stage.engine
        # one source an epoch, in which an image draws by its id: parts and batches play no part
        generator = derived_generator(*phase.source, "attack", epoch, device=device)
        head_alone = isinstance(self.stage.tuning, Linear)
        looks = watches(attack, head_alone, self.progress.step)
        alignment = Alignment() if looks else None
        with set_tf32(engine.tf32):
            with engine.training(device):
                terms = objective(Step(self.model, part, attack, generator, engine, alignment))
            mended(terms.loss * weight).backward()
        right = (terms.logits.argmax(1) == part.y).sum()
        loss = terms.loss.detach().double()
        row = torch.stack([loss * len(part.y), right.double(), torch.full_like(loss, len(part.y))])
        aligned = (alignment or Alignment()).row(loss, len(part.y) / weight if weight else 0.0)
        row = torch.cat([row, aligned])
        return row if terms.counts is None else torch.cat([row, terms.counts])

    def _lr_factor(self, position: int) -> float:
        return self.stage.lr_factor(position, steps=self.steps)

    def _flush(self, epoch: int, bar: tqdm, *, since: float | None = None) -> float:
        """Bring the losses of the last updates to the host, which waits for the device, look for
        NaN, and add them up; returns the seconds `since` then."""
        if not self.rows:
            return 0.0
        rows, first = torch.stack(self.rows).cpu(), self.progress.step - len(self.rows)
        self.rows, seconds = [], time.perf_counter() - (since or time.perf_counter())
        rows = self.distributed.all_reduce_(rows)
        bad = torch.nonzero(~torch.isfinite(rows[:, 0])).flatten()
        if len(bad):
            words = f"{self.phase.name} loss".strip()
            self._refuse(epoch, first + int(bad[0]), f"the {words} is {float(rows[bad[0], 0])}")
        loss, right = self.phase.add(rows, self.progress.epoch_sums)
        images = int(rows[:, 2].sum())
        self.progress.train_images += images
        shown = {"loss": f"{loss:.3f}", "robust" if self._attacks(epoch) else "clean": right}
        if self.progress.best_epoch >= 0:
            shown["best val"] = self.progress.best_score
        told = {k: v if isinstance(v, str) else f"{100 * v:.1f}%" for k, v in shown.items()}
        bar.set_postfix(told, refresh=False)
        if self._attacks(epoch) or self.attack is None:  # clean epochs say nothing of the rest
            left = 1 - self.progress.train_images / self.images
            self.context.remaining.measured(self.job.stage_id, images, seconds, left)
        return seconds

    def _check_weights(self, epoch: int) -> None:
        """A finite loss can still leave NaN weights; those must reach no checkpoint."""
        for name in self.names:
            if not bool(torch.isfinite(self.model.get_parameter(name)).all()):
                self._refuse(epoch, self.progress.step - 1, f"{name} is no longer finite")

    def _refuse(self, epoch: int, step: int, what: str) -> None:
        if self.best:
            self._export_best()
        rate = self.peak[0] * self._lr_factor(epoch * self.steps + step)
        kept = f"The best weights so far are in {self.job.folder}. " if self.best else ""
        raise NonFiniteLossError(
            f"stage '{self.job.name}': {what} at epoch {epoch}, step {step}, lr {rate:.3g}. {kept}"
            "Lower optimizer.lr, lengthen warmup_epochs, or add clean_epochs."
        )

    def _checkpoint_due(self) -> bool:
        return time.monotonic() - self.saved_at >= 60 * self.context.checkpoint_minutes

    def _save_and_check(self) -> None:
        self._save()
        self.context.interrupt.check()

    def _save(self) -> None:
        self._check_weights(self.progress.epoch)
        changing = checkpoint.changing_tensors(self.model, self.names)
        self.progress.counts = self.counts.tolist()
        if self.distributed.is_main:
            tensors = {"model": changing, "best": self.best, **self.phases.kept}
            optimizers, path = self.phases.optimizers, self.resume_path
            checkpoint.save_resume(path, tensors, optimizers, self.progress)
        self.saved_at = time.monotonic()

    def _finish_phase(self, epoch: int) -> None:
        """On to the next phase, or with `step` at the end of the last one to the validation."""
        more = self.phase is not self.phases.own
        if more:  # nobody looks at these weights again before they are merged
            self._check_weights(epoch)
        self.phases.end(self.phase)
        self.progress.phase += 1
        if more:
            self.progress.step = 0

    def _finish_epoch(self, epoch: int) -> None:
        self._check_weights(epoch)
        last = epoch + 1 == self.stage.epochs
        values = self._training_values(epoch)
        if last or (epoch + 1) % self.stage.validate_every == 0:
            scores = self._validate()
            score = scores.get("validation_robust_accuracy", scores["validation_clean_accuracy"])
            if score > self.progress.best_score or self.stage.select == "last":
                self.progress.best_score, self.progress.best_epoch = score, epoch
                tensors = checkpoint.changing_tensors(self.model, self.names)
                self.best = checkpoint.copy_tensors(tensors)
            values |= scores
        self.context.recorder.add(self.job.stage_id, epoch, values, attacked=self._attacks(epoch))
        self.progress.epoch, self.progress.phase, self.progress.step = epoch + 1, 0, 0
        self.progress.epoch_sums = {}
        if not last and self.context.wanted(save=self._checkpoint_due()):
            self._save_and_check()

    def _training_values(self, epoch: int) -> dict[str, float]:
        """Means over the epoch, and the rate of its last update."""
        means = dict[str, float]()
        for phase in reversed(self.phases.all):
            loss, right = phase.means(self.progress.epoch_sums)
            means |= {f"{phase.prefix}train_loss": loss, f"{phase.prefix}train_accuracy": right}
            if (aligned := phase.alignment(self.progress.epoch_sums)) is not None:
                means[f"{phase.prefix}train_alignment"] = aligned
        rate = self.peak[0] * self._lr_factor((epoch + 1) * self.steps - 1)
        return {**means, "lr": rate, **self.progress.speed}

    def _validate(self) -> dict[str, float]:
        """Clean and, where the stage is adversarial, robust accuracy on the validation split: of
        several norms that of their union, with each norm's beside it.

        A stop that comes meanwhile saves the position before this validation.
        """
        attacks = columns(self.job.validation, self.job.threat) if self.attack else {}
        result = self._evaluated(attacks)
        scores = {"validation_clean_accuracy": result.clean_accuracy}
        if len(attacks) > 1:
            for norm, value in result.robust_accuracy.items():
                scores[f"validation_{norm}_accuracy"] = value
        if attacks:
            scores["validation_robust_accuracy"] = result.union_accuracy
        return scores

    def _evaluated(self, attacks: Sequence[Attack] | Mapping[str, Attack]) -> Evaluation:
        """The validation split under each of them; a stop that comes meanwhile saves first."""

        def check(_count: int) -> None:
            if self.context.wanted():
                self._save_and_check()

        split = self.job.splits.val
        world = self.distributed.world_size
        own = evaluate(
            self.model,
            self.context.evaluation_batches(split, self.stage.part_size(world)),
            attacks,
            seed=derive_seed(self.job.seed, "validation"),
            engine=self.stage.evaluation_engine,
            after_batch=check,
        )
        return self.context.whole(own, split)

    def _export_best(self) -> None:
        checkpoint.restore_tensors(self.model, self.best, self.resume_path)
        self._save_model("best.safetensors")

    def _save_model(self, name: str) -> None:
        if self.distributed.is_main:
            save_model(self.model, self.job.folder / name, classes=self.job.splits.classes)

    def _finish(self) -> StageResult:
        progress = self.progress
        self._save_model("last.safetensors")
        self._export_best()
        for parameter in self.model.parameters():
            parameter.requires_grad_(True)
        counted: dict[str, Any] = progress.speed
        return StageResult(
            name=self.job.name,
            epochs=self.stage.epochs,
            best_epoch=progress.best_epoch,
            best_validation_accuracy=progress.best_score,
            trainable_parameters=sum(self.model.get_parameter(n).numel() for n in self.names),
            train_images=progress.train_images,
            train_seconds=progress.train_seconds,
            start_accuracies=progress.accuracies,
            lr=self.stage.optimizer.lr,
            **counted,
        )


def run_stage(job: Job, context: Context) -> StageResult:
    """Run `job` to its end, from wherever an earlier run left it."""
    job = rated(job, context)
    loop = StageLoop(job, context)
    try:
        result = loop.run()
    except InterruptedRunError as error:
        text = f"{error} in stage '{job.name}'"
        raise InterruptedRunError(text, *error.args[1:]) from error
    if context.distributed.is_main:
        save_head(job.model, job.folder / "head.safetensors")
        write_json(job.folder / "result.json", asdict(result))
        loop.resume_path.unlink(missing_ok=True)  # last: a crash before this loses nothing
    return context.distributed.broadcast(result)  # which the others wait for, and the files with it
