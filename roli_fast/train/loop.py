"""The one training loop: every stage of every method runs through it."""

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from roli_fast.attacks import SORA, Attack, SingleStep
from roli_fast.data import Batch, ImageDataset, batches, num_batches, shares
from roli_fast.engine.batch_norm import mended
from roli_fast.engine.tf32 import set_tf32
from roli_fast.errors import (
    CollapseError,
    DataError,
    InterruptedRunError,
    NonFiniteLossError,
    OutOfMemoryError,
)
from roli_fast.evaluate import Evaluation, columns, evaluate
from roli_fast.files import write_json
from roli_fast.models import save_head, save_model
from roli_fast.peft import Linear
from roli_fast.seeds import derive_seed, derived_generator
from roli_fast.threat import known_values
from roli_fast.train import alignment, checkpoint
from roli_fast.train.alignment import Alignment
from roli_fast.train.averaging import Average
from roli_fast.train.checkpoint import Progress, Tensors, changing_tensors, copy_tensors
from roli_fast.train.context import Context
from roli_fast.train.eps_schedule import Constant
from roli_fast.train.linear_probe import rated
from roli_fast.train.objectives import Adversarial, Objective, Step, attach, detach
from roli_fast.train.stage import Job, StageResult, measured

BLOCK = 16
"""Updates whose losses come to the host at once: a GPU is waited for no more often."""

SUMS = ("loss", "right", "images", "cosine", "sora", "looked")
"""What an update reports: its summed loss, how many images were right, and how many there were; and
`Alignment.row`."""

logger = logging.getLogger(__name__)


@dataclass
class Phase:
    """One pass over the training images of an epoch.

    Args:
        objective: what it minimises.
        attack: makes its training images where the stage's radius is not 0; None for none.
        optimizer: its own, over what trains.
        source: what its draws are derived from, beside what each is for and its position.
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

    def means(self, sums: Mapping[str, float]) -> tuple[float, float]:
        """Its mean loss in an epoch and the share of images that was right, from the `SUMS`."""
        loss, right, images = (sums[self.prefix + name] for name in SUMS[:3])
        return loss / images, right / images

    def alignment(self, sums: Mapping[str, float]) -> float | None:
        """Its mean alignment in an epoch; None where nothing was measured."""
        looked = sums.get(f"{self.prefix}looked", 0)
        return sums[f"{self.prefix}cosine"] / looked if looked else None


class StageLoop:
    """Trains one stage, validates it, and can stop and go on at any update.

    Several processes go through it side by side, each with its share of every batch: what one
    decides by the clock or a signal is agreed on by all, and the first writes the files.
    """

    def __init__(self, job: Job, context: Context) -> None:
        self.job, self.context, self.distributed = job, context, context.distributed
        self.model, self.stage = job.model, job.stage
        self.names = job.stage.prepare(job.model, seed=job.seed)
        self.names += attach(job.model, job.stage.objective, job.seed)
        self.attack = job.stage.attack.under(job.threat) if job.stage.attack else None
        job.stage.objective.check(self.attack)
        self.phases = [self._phase(job.stage.objective, self.attack)]
        if job.stage.gradient_projection:
            self.phases.insert(0, self._phase(Adversarial(), None, "natural"))
        self.optimizer = self.phases[-1].optimizer
        self.peak = [group["lr"] for group in self.optimizer.param_groups]
        train, size = job.splits.train, job.stage.batch_size
        # BatchNorm cannot take a last batch of one image
        self.drop_last = len(train) > 1 and len(train) % size == 1
        self.steps = num_batches(train, batch_size=size, drop_last=self.drop_last)
        self.images = job.stage.epochs * len(self.phases) * (len(train) - self.drop_last)
        self.progress = Progress()
        self.guarded = isinstance(self.attack, SingleStep) and job.on_collapse != "ignore"
        looks = self._validations().values()
        self.every, look = job.stage.validation_plan(job.threat, looks, job.splits)
        val = job.splits.val  # evenly, for the order may be that of the classes
        self.val = val if look == len(val) else val.subset(torch.arange(look) * len(val) // look)
        # what the stage's own objective has counted so far, over all processes
        self.counts = torch.zeros(
            job.stage.objective.counters, dtype=torch.float64, device=context.device
        )
        self.best: Tensors = {}
        self.average: Average | None = None
        if averaging := job.stage.averaging:
            updates = job.stage.epochs * self.steps
            self.average = Average(averaging, self.model, self.names, updates)
        # of gradient projection: "start", an epoch's first weights, and "natural", those after the
        # clean half
        self.kept: dict[str, Tensors] = {}
        self.saved_at = time.monotonic()
        self.rows: list[Tensor] = []
        self.checked = False
        self.due = False

    def _phase(self, objective: Objective, attack: Attack | None, *name: str) -> Phase:
        optimizer = self.stage.optimizer.build(self.model, self.names)
        return Phase(objective, attack, optimizer, (self.job.seed, self.job.name, *name), *name)

    @property
    def resume_path(self) -> Path:
        """The file from which an interrupted stage goes on."""
        return self.job.folder / "resume.pt"

    @property
    def phase(self) -> Phase:
        """The phase of the next update, or of the last one."""
        return self.phases[min(self.progress.phase, len(self.phases) - 1)]

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

    def _resume(self) -> None:
        if self.resume_path.exists():
            saved, device = checkpoint.load_resume(self.resume_path), self.context.device
            with checkpoint.explained(self.resume_path):
                checkpoint.restore_tensors(self.model, saved.tensors.pop("model"))
                for phase in self.phases:
                    checkpoint.restore_optimizer(phase.optimizer, saved.optimizers[phase.name])
                self.best = saved.tensors.pop("best")
                if self.average and (averaged := saved.tensors.pop("averaged")):
                    self.average.tensors = {n: t.to(device) for n, t in averaged.items()}
                    self.average.count = saved.progress.averaged
                for part, tensors in saved.tensors.items():
                    self.kept[part] = {name: t.to(device) for name, t in tensors.items()}
            self.progress = saved.progress
            if saved.progress.counts:
                self.counts = self.counts.new_tensor(saved.progress.counts)
            self._take_steps()
        self.distributed.broadcast_(self.model.state_dict().values())
        if self.guarded and not self.best:  # what an alarm in the first epoch goes back to
            self.best = self._copy()
        self.context.recorder.forget(self.job.stage_id, self.progress.epoch)

    def _bar(self) -> tqdm:
        title = self.context.remaining.title(self.job.stage_id)
        done = self.progress.train_images
        return self.context.bar(title, total=self.images, initial=done)

    def _epochs(self, bar: tqdm) -> None:
        """What is left of the stage."""
        self._settle()
        while (epoch := self.progress.epoch) < self.stage.epochs:
            while self.progress.phase < len(self.phases):
                if self.stage.gradient_projection and not self.kept:
                    self.kept = {"start": self._copy()}
                self._train_epoch(epoch, bar)
                self._finish_phase(epoch)
            self._finish_epoch(epoch)

    def _settle(self) -> None:
        """Measure what the objective wants to know of the model before the first update."""
        own, found = self.phases[-1], self.progress.accuracies
        if not own.objective.needs_accuracies:
            return
        for threat in measured(self.attack, self.job.threat):
            if threat.norm not in found:
                look = [self.job.validation.under(threat)]
                result = self._evaluated(look, self.job.splits.val)
                (found[threat.norm],) = result.robust_accuracy.values()
        own.objective = own.objective.settled(found)
        shown = ", ".join(f"{norm} {100 * value:.1f} %" for norm, value in found.items())
        text = "stage '%s' starts at robust accuracy %s: %s"
        logger.info(text, self.job.name, shown, own.objective)

    def _train_epoch(self, epoch: int, bar: tqdm) -> None:
        """One phase of an epoch, or what is left of it."""
        self._measure(epoch)
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

    def _measure(self, epoch: int) -> None:
        """At an attacked epoch's beginning, the clean accuracy that the objective wants to know."""
        network = self.phase.objective.measured(self.model) if self._attacks(epoch) else None
        if network is not None and self.progress.step == 0:
            result = self._evaluated({}, self.job.splits.train, network)
            self.progress.accuracy = result.clean_accuracy

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

    def _share(self, epoch: int) -> float:
        """The epoch's radius, as a share of the attack's."""
        return self.stage.eps_share(epoch, self.progress.clean_accuracies)

    def _attacks(self, epoch: int) -> bool:
        """Whether the phase's images are attacked in this epoch."""
        return self.phase.attack is not None and self._share(epoch) > 0

    def _looks(self, epoch: int) -> AbstractContextManager[None]:
        """Whether the attack looks at the values of images and labels: in its first update alone.

        A loader's images are in [0, 1] and its labels those of the splits.
        """
        low, high = getattr(self.attack, "bounds", None) or (1.0, 0.0)
        known = self.checked and low <= 0 and high >= 1
        self.checked |= self._attacks(epoch)
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
        rows = list[Tensor]()
        for run in shares(len(batch.y), self.stage.accumulate):
            part = Batch(batch.x[run], batch.y[run], batch.ids[run])
            rows.append(self._backward(epoch, position, part, own * len(part.y) / images))
        # before anything waits for the others: whether all save now
        self.due = self.context.wanted(save=self._checkpoint_due())
        self.distributed.merge_gradients_(self.model, own * len(batch.y) / images)
        phase.optimizer.step()
        if self.average:
            self.average.add(position)
        row = torch.stack(rows).sum(0) * own
        if len(row) > len(SUMS):
            self.counts = self.counts + self.distributed.all_reduce_(row[len(SUMS) :].clone())
        if isinstance(attack := self._attack(epoch), SORA):
            looked = self.distributed.all_reduce_(row[3 : len(SUMS)].clone())
            self.progress.sora = alignment.remembered(attack, looked)
        return row[: len(SUMS)]

    def _attack(self, epoch: int) -> Attack | None:
        """What makes the next update's images at the epoch's radius; SORA with its average."""
        if self.phase.attack is None or not self._attacks(epoch):
            return None
        attack = self.phase.attack.at(self._share(epoch))
        if isinstance(attack, SORA) and self.progress.sora is not None:
            return replace(attack, alignment=self.progress.sora)
        return attack

    def _backward(self, epoch: int, position: int, part: Batch, weight: float) -> Tensor:
        """Forward and backward: adds `weight` times the gradient of the mean loss. Returns the
        part's `SUMS` in one tensor, and after them what the objective counts."""
        device, phase, engine = part.x.device, self.phase, self.stage.engine
        # one source an epoch, in which an image draws by its id: parts and batches play no part
        generator = derived_generator(*phase.source, "attack", epoch, device=device)
        draw = (derive_seed(*phase.source, "objective", position) >> 10) / 2**53
        attack, head_alone = self._attack(epoch), isinstance(self.stage.tuning, Linear)
        watched = alignment.watches(attack, head_alone, self.progress.step)
        aligned = Alignment() if watched else None
        accuracy = self.progress.accuracy or 0.0
        given = (attack, generator, engine, self.counts, draw, aligned, accuracy)
        step = Step(self.model, part, *given)
        with set_tf32(engine.tf32):
            with engine.training(device):
                terms = phase.objective(step)
            mended(terms.loss * weight).backward()
        right = (terms.logits.argmax(1) == part.y).sum()
        loss = terms.loss.detach().double()
        row = torch.stack([loss * len(part.y), right.double(), torch.full_like(loss, len(part.y))])
        looked = (aligned or Alignment()).row(loss, len(part.y) / weight if weight else 0.0)
        row = torch.cat([row, looked])
        return row if terms.counts is None else torch.cat([row, terms.counts])

    def _lr_factor(self, position: int) -> float:
        halved = self.stage.schedule.halvings([*self.progress.scores.values()])
        return self.stage.lr_factor(position, steps=self.steps) * 0.5**halved

    def _flush(self, epoch: int, bar: tqdm, *, since: float | None = None) -> float:
        """Bring the `SUMS` of the last updates to the host, which waits for the device, look for
        NaN, and add them up; returns the seconds `since` then."""
        if not self.rows:
            return 0.0
        rows, first = torch.stack(self.rows).cpu(), self.progress.step - len(self.rows)
        self.rows, seconds = [], time.perf_counter() - (since or time.perf_counter())
        rows, phase, sums = self.distributed.all_reduce_(rows), self.phase, self.progress.epoch_sums
        bad = torch.nonzero(~torch.isfinite(rows[:, 0])).flatten()
        if len(bad):
            words = f"{phase.name} loss".strip()
            self._refuse(epoch, first + int(bad[0]), f"the {words} is {float(rows[bad[0], 0])}")
        for name, value in zip(SUMS, rows.sum(0).tolist(), strict=True):
            sums[phase.prefix + name] = sums.get(phase.prefix + name, 0.0) + value
        self.progress.train_images += int(rows[:, 2].sum())
        loss, right = phase.means(sums)
        shown = {"loss": f"{loss:.3f}"}
        shown["robust" if self._attacks(epoch) else "clean"] = f"{100 * right:.1f}%"
        if (cosine := phase.alignment(sums)) is not None:
            shown["alignment"] = f"{cosine:.2f}"
        if self.progress.best_epoch >= 0:
            shown["best val"] = f"{100 * self.progress.best_score:.1f}%"
        bar.set_postfix(shown, refresh=False)
        if self._attacks(epoch) or self.attack is None:  # clean epochs say nothing of the rest
            left, images = 1 - self.progress.train_images / self.images, int(rows[:, 2].sum())
            self.context.remaining.measured(self.job.stage_id, images, seconds, max(left, 0.0))
        return seconds

    def _check_weights(self, epoch: int) -> None:
        """A finite loss can still leave NaN weights; those must reach no checkpoint."""
        for name in self.names:
            if not bool(torch.isfinite(self.model.get_parameter(name)).all()):
                self._refuse(epoch, self.progress.step - 1, f"{name} is no longer finite")

    def _refuse(self, epoch: int, step: int, what: str) -> None:
        path = self.export_best_so_far()
        kept = f"The best weights so far are in {path}. " if path else ""
        rate = self.peak[0] * self._lr_factor(epoch * self.steps + step)
        raise NonFiniteLossError(
            f"stage '{self.job.name}': {what} at epoch {epoch}, step {step}, lr {rate:.3g}. {kept}"
            "Lower optimizer.lr, lengthen warmup_epochs, or take eps_schedule ramp."
        )

    def _checkpoint_due(self) -> bool:
        return time.monotonic() - self.saved_at >= 60 * self.context.checkpoint_minutes

    def _save_and_check(self) -> None:
        self._save()
        self.context.interrupt.check()

    def _save(self) -> None:
        self._check_weights(self.progress.epoch)
        self.progress.counts = self.counts.tolist()
        if self.distributed.is_main:
            model = changing_tensors(self.model, self.names)
            tensors = {"model": model, "best": self.best, **self.kept}
            if self.average:
                self.progress.averaged = self.average.count
                tensors |= {"averaged": self.average.tensors, "model": self.average.raw or model}
            optimizers = {phase.name: phase.optimizer for phase in self.phases}
            checkpoint.save_resume(self.resume_path, self.progress, tensors, optimizers)
        self.saved_at = time.monotonic()

    def _copy(self) -> Tensors:
        return copy_tensors(changing_tensors(self.model, self.names))

    def _finish_phase(self, epoch: int) -> None:
        """On to the next phase, or with `step` at the end of the last one to the validation. After
        the clean half of gradient projection back to the first weights, and at the end the merge.
        """
        if self.phase is not self.phases[-1]:
            self._check_weights(epoch)  # nobody looks at them again before they are merged
            self.kept["natural"] = self._copy()
            checkpoint.restore_tensors(self.model, self.kept["start"])
            self.progress.step = 0
        elif projection := self.stage.gradient_projection:
            merged = projection.merged(**self.kept, adversarial=self._copy())
            checkpoint.restore_tensors(self.model, merged)
            self.kept = {}
        self.progress.phase += 1

    def _finish_epoch(self, epoch: int) -> None:
        self._check_weights(epoch)
        last = epoch + 1 == self.stage.epochs
        values = self._training_values(epoch)
        alarm = self._alignment_alarm()
        waits = self.stage.eps_schedule.follows_accuracy and not self._attacks(epoch)
        if not alarm and (last or (epoch + 1) % self.every == 0):
            scores = self._validate()
            score = _selecting(scores)
            if self.guarded and self._share(epoch) == 1:  # it is the radius of validation
                alarm = alignment.score_alarm(score, self.progress.best_score, len(self.val))
            if not alarm:
                scores |= self._keep_best(score, epoch)
            values |= scores
            self._follow(epoch, score)
        elif waits and not alarm:
            looked = self._evaluated({}, self.val)
            values["validation_clean_accuracy"] = looked.clean_accuracy
        if alarm:
            return self._go_back(alarm)
        if waits:
            self._note_accuracy(epoch, values["validation_clean_accuracy"])
        self.context.recorder.add(self.job.stage_id, epoch, values, attacked=self._attacks(epoch))
        last |= self.stage.schedule.ended([*self.progress.scores.values()])
        self.progress.epoch = self.stage.epochs if last else epoch + 1
        self.progress.phase = self.progress.step = 0
        self.progress.epoch_sums = {}
        if not last and self.context.wanted(save=self._checkpoint_due()):
            self._save_and_check()

    def _note_accuracy(self, epoch: int, accuracy: float) -> None:
        """For the radius that waits for it to stall."""
        self.progress.clean_accuracies.append(accuracy)
        if epoch + 1 < self.stage.epochs and self._attacks(epoch + 1):
            text = "stage '%s': the radius rises from epoch %d on, at %.1f %% clean accuracy"
            logger.info(text, self.job.name, epoch + 1, 100 * accuracy)

    def _keep_best(self, score: float, epoch: int) -> dict[str, float]:
        """Keep the weights, which validated at `score`, or their average, where that is the best so
        far; returns what the average scored."""
        progress, last, found = self.progress, self.stage.select == "last", {"raw": score}
        averaged = self.average.tensors if self.average else {}
        if self.average and averaged:
            with self.average.in_model():
                found["averaged"] = _selecting(self._validate())
        which = [*found][-1] if last else max(reversed(found), key=found.__getitem__)
        if last or found[which] > progress.best_score:
            progress.best_score, progress.best_epoch = found[which], epoch
            progress.candidates = found
            self.best = copy_tensors(averaged) if which == "averaged" else self._copy()
        return {"validation_averaged_accuracy": found["averaged"]} if averaged else {}

    def _follow(self, epoch: int, score: float) -> None:
        """Note a validation's score, and go on from the best weights where it halves the rate."""
        scores, halvings = self.progress.scores, self.stage.schedule.halvings
        before = halvings([*scores.values()])
        scores[epoch] = score
        if halvings([*scores.values()]) > before:
            checkpoint.restore_tensors(self.model, self.best)

    def _alignment_alarm(self) -> str:
        """Note the alignment of an epoch that ends; says what is wrong with it."""
        found, epoch = self.progress.alignments, self.progress.epoch
        cosine = self.phases[-1].alignment(self.progress.epoch_sums)
        if cosine is None:
            return ""
        found[epoch] = cosine
        # it falls as the radius rises: alike are the epochs at this one, and nearly so the last one
        alike = [e for e in found if e == epoch - 1 or self._share(e) == self._share(epoch)]
        highest = max(found[e] for e in alike)
        return alignment.alignment_alarm(cosine, highest) if self.guarded else ""

    def _go_back(self, alarm: str) -> None:
        """To the weights of the best epoch so far, and on from there with more steps, or not.

        Raises:
            CollapseError: the stage shall stop, and no epoch was validated yet.
        """
        progress, again = self.progress, self.progress.best_epoch + 1
        steps = 2 * max(1, progress.steps)
        goes_on = self.job.on_collapse == "steps" and steps <= alignment.MOST_STEPS
        then = f"from there with {steps} steps" if goes_on else "the stage ends with its weights"
        back = f"back to the end of epoch {again - 1}" if again else "back to the first weights"
        text = f"epoch {progress.epoch}: {alarm}; {back}, {then}"
        logger.warning("stage '%s', %s", self.job.name, text)
        if not goes_on and not again:
            fix = "Take --on_collapse steps, a smaller eps, or an attack of more steps."
            raise CollapseError(f"stage '{self.job.name}', epoch {progress.epoch}: {alarm}. {fix}")
        progress.alarms.append(text)
        checkpoint.restore_tensors(self.model, self.best)
        for phase in self.phases:
            phase.optimizer.state.clear()
        if self.average:
            self.average.forget()
        self.context.recorder.forget(self.job.stage_id, again)
        progress.epoch, progress.phase, progress.step = again, 0, 0
        progress.epoch_sums = {}
        progress.clean_accuracies = progress.clean_accuracies[:again]
        progress.scores = {e: score for e, score in progress.scores.items() if e < again}
        if goes_on:
            progress.steps = steps
            self._take_steps()
        else:
            progress.epoch = self.stage.epochs

    def _take_steps(self) -> None:
        """Attack with the steps of the last alarm, if there was one."""
        if self.progress.steps and isinstance(self.attack, SingleStep):
            self.phases[-1].attack = alignment.with_steps(self.attack, self.progress.steps)

    def _training_values(self, epoch: int) -> dict[str, float]:
        """Means over the epoch, and the rate of its last update."""
        means = dict[str, float]()
        for phase in reversed(self.phases):
            loss, right = phase.means(self.progress.epoch_sums)
            means |= {f"{phase.prefix}train_loss": loss, f"{phase.prefix}train_accuracy": right}
            if (cosine := phase.alignment(self.progress.epoch_sums)) is not None:
                means[f"{phase.prefix}train_alignment"] = cosine
        if self.attack and self.stage.eps_schedule != Constant():
            eps = getattr(self.attack, "eps", 0.0)  # of several norms the first, as all move alike
            means["train_eps"] = self._share(epoch) * (eps[0] if isinstance(eps, tuple) else eps)
        if self.progress.accuracy is not None:
            means["train_clean_accuracy"] = self.progress.accuracy
        rate = self.peak[0] * self._lr_factor((epoch + 1) * self.steps - 1)
        return {**means, "lr": rate, **self.progress.speed}

    def _validations(self) -> dict[str, Attack]:
        return columns(self.job.validation, self.job.threat)

    def _validate(self) -> dict[str, float]:
        """Clean and, where the stage is adversarial, robust accuracy on the validation split: of
        several norms that of their union, with each norm's beside it.

        A stop that comes meanwhile saves the position before this validation.
        """
        attacks = self._validations() if self.attack else {}
        result = self._evaluated(attacks, self.val)
        scores = {"validation_clean_accuracy": result.clean_accuracy}
        if len(attacks) > 1:
            for norm, value in result.robust_accuracy.items():
                scores[f"validation_{norm}_accuracy"] = value
        if attacks:
            scores["validation_robust_accuracy"] = result.union_accuracy
        return scores

    def _evaluated(
        self,
        attacks: Sequence[Attack] | Mapping[str, Attack],
        split: ImageDataset,
        model: nn.Module | None = None,
    ) -> Evaluation:
        """The split under each of them, through the stage's model or another; a stop that comes
        meanwhile saves first."""

        def check(_count: int) -> None:
            if self.context.wanted():
                self._save_and_check()

        world = self.distributed.world_size
        own = evaluate(
            model or self.model,
            self.context.evaluation_batches(split, self.stage.part_size(world)),
            attacks,
            seed=derive_seed(self.job.seed, "validation"),
            engine=self.stage.evaluation_engine,
            after_batch=check,
        )
        return self.context.whole(own, split)

    def export_best_so_far(self) -> Path | None:
        """Leave the weights of the best epoch in the model and in the stage's folder; returns the
        file, None where no epoch was validated yet."""
        return self._export_best() if self.progress.best_epoch >= 0 else None

    def _export_best(self) -> Path:
        checkpoint.restore_tensors(self.model, self.best)
        return self._save_model("best.safetensors")

    def _save_model(self, name: str) -> Path:
        path = self.job.folder / name
        if self.distributed.is_main:
            save_model(self.model, path, classes=self.job.splits.classes)
        return path

    def _finish(self) -> StageResult:
        progress, job = self.progress, self.job
        looks, accuracies = self._validations().values(), progress.clean_accuracies
        _update, passes = self.stage.passes(job.threat, looks, job.splits, accuracies)
        self._save_model("last.safetensors")
        if self.average and self.average.tensors:
            with self.average.in_model():
                self._save_model("averaged.safetensors")
            shown = ", ".join(f"{100 * v:.1f} % {n}" for n, v in progress.candidates.items())
            text = "stage '%s', best epoch %d: validation accuracy of the weights %s"
            logger.info(text, job.name, progress.best_epoch, shown)
        self._export_best()
        trainable = sum(self.model.get_parameter(name).numel() for name in self.names)
        detach(self.model)
        for parameter in self.model.parameters():
            parameter.requires_grad_(True)
        speed: dict[str, Any] = progress.speed
        return StageResult(
            name=self.job.name,
            epochs=self.stage.epochs,
            best_epoch=progress.best_epoch,
            best_validation_accuracy=progress.best_score,
            candidates=progress.candidates if self.average else {},
            trainable_parameters=trainable,
            train_images=progress.train_images,
            train_seconds=progress.train_seconds,
            start_accuracies=progress.accuracies,
            passes=passes,
            validation_images=len(self.val),
            validated_every=self.every,
            alignment=[None, *progress.alignments.values()][-1],
            alarms=progress.alarms,
            lr=self.stage.optimizer.lr,
            **speed,
        )


def _selecting(scores: Mapping[str, float]) -> float:
    """The accuracy of a validation by which the best epoch is selected."""
    return scores.get("validation_robust_accuracy", scores["validation_clean_accuracy"])


def run_stage(job: Job, context: Context) -> StageResult:
    """Run `job` to its end, from wherever an earlier run left it."""
    job = rated(job, context)
    loop = StageLoop(job, context)
    try:
        result = loop.run()
    except InterruptedRunError as error:
        path = loop.export_best_so_far()
        best = f", whose best weights so far are in '{path}'" if path else ""
        text = f"{error} in stage '{job.name}'{best}"
        raise InterruptedRunError(text, *error.args[1:]) from error
    if context.distributed.is_main:
        save_head(job.model, job.folder / "head.safetensors")
        write_json(job.folder / "result.json", asdict(result))
        loop.resume_path.unlink(missing_ok=True)  # last: a crash before this loses nothing
    return context.distributed.broadcast(result)  # which the others wait for, and the files with it
