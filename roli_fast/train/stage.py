"""One training stage: its configuration, what it is run on, and its result."""

import math
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from roli_fast.attacks import NFGSM, PGD, Attack, SingleStep
from roli_fast.configuration import inside
from roli_fast.data import Splits, shares
from roli_fast.engine import Engine
from roli_fast.errors import ArgumentError, check_choice, describe
from roli_fast.evaluate import attack_passes
from roli_fast.models import Classifier
from roli_fast.peft import Full, Linear, Method, apply
from roli_fast.running.memory import IN_PARTS, memory_guard
from roli_fast.threat import ThreatModel, check_positive
from roli_fast.train.alignment import OnCollapse
from roli_fast.train.averaging import Averaging
from roli_fast.train.eps_schedule import Constant, EpsSchedule, Ramp
from roli_fast.train.gradient_projection import GradientProjection
from roli_fast.train.objectives import Adversarial, Objective
from roli_fast.train.optim import Cosine, Optimizer, Schedule

FEWEST = 200
"""Images that a validation looks at before it becomes rarer instead."""


def pgd_in_run(steps: int) -> PGD:
    """PGD whose norm, radius, step size and bounds follow the run's threat model."""
    return PGD(norm=None, eps=None, step_size=None, steps=steps, bounds=None)


def one_step(stage: "Stage") -> "Stage":
    """The stage with N-FGSM in the place of PGD; one that has another attack as it is."""
    if not isinstance(stage.attack, PGD):
        return stage
    ball: dict[str, Any] = {n: getattr(stage.attack, n) for n in ("norm", "eps", "bounds")}
    return replace(stage, attack=NFGSM(**ball))


def ramped(stage: "Stage") -> "Stage":
    """The stage with a radius that rises as published; one whose radius moves already as it is."""
    fixed = stage.eps_schedule == Constant()
    return replace(stage, eps_schedule=Ramp()) if fixed else stage


def measured(attack: Attack | None, threat: ThreatModel) -> tuple[ThreatModel, ...]:
    """The threats of one norm for which an objective's accuracies are measured: those of the norms
    that the stage's `attack` searches, for in others it cannot be trained."""
    norms = getattr(attack, "norms", None)
    return tuple(alone for alone in threat.each if norms is None or alone.norm in norms)


@dataclass(frozen=True)
class Stage:
    """One round of training: what trains, on which images, for how long.

    Args:
        epochs: passes over the training split.
        tuning: which parameters train.
        objective: what is minimised.
        attack: makes the training images; null trains on clean ones (LP-FT is RoLI with null), and
            then validation is on clean ones too: clean accuracy selects the best epoch.
        eps_schedule: how the attack's radius moves over the stage: constant; ramp, clean images at
            first, then a radius that rises; or auto, a ramp that begins when validation accuracy
            stalls. Given step sizes follow the radius. Validation is always at the full one.
        optimizer: optimiser, peak learning rate and weight decay.
        batch_size: images per update, over all processes and parts.
        accumulate: parts in which each process takes its images of an update, one after the other,
            so that a larger batch_size fits into memory; evaluation takes as many at once. The
            update is that of one large batch, but for rounding; BatchNorm in training mode, dropout
            and RAMP's mean over right samples see each part for itself. No part is of one image,
            so there may be fewer. A resume may change it.
        warmup_epochs: length of the linear warm-up, in epochs; a fraction is fine.
        schedule: how the learning rate moves over the stage.
        validate_every: epochs between validations; the last epoch is always validated.
        validation_share: the most of the stage's passes that validations may take: each looks at
            fewer images, the same every time, and where these would be few, every so many epochs
            more. 1 is no limit; null is a fifth with an attack of a single step, else no limit.
        select: "best", the weights of the epoch that validates best; or "last", those of the last
            epoch, whatever validation says.
        engine: how the attack's passes are made, folded unless it says otherwise. dtype bfloat16
            makes the training passes so too, with weights, their gradients and the loss in fp32.
            Validation and test search in bf16 too; a find counts once the fp32 model confirms it.
        gradient_projection: trains each epoch on clean images as well, from the same weights, and
            merges both; null for none, {} for its defaults, and any of its fields switches it on.
            `epochs` and all the rest are those of the other half.
        averaging: of the weights over the updates, {} for an exponential moving average; null for
            none. Validation then takes twice the passes.
        head_scale: factor by which the head's weight and bias are multiplied once, before the first
            update: how far features move depends on the scale of the head (LP-FT). A gradient of
            cross-entropy vanishes behind a very large head, for training and attacks alike.
        zeroed: words; tensors that train and have one in their name begin at zero, as "lora_a" and
            "adapter" do in RoLI's release.
    """

    epochs: int = 20
    tuning: Method = field(default_factory=Full)
    objective: Objective = field(default_factory=Adversarial)
    attack: Attack | None = field(default_factory=lambda: pgd_in_run(7))
    eps_schedule: EpsSchedule = field(default_factory=Constant)
    optimizer: Optimizer = field(default_factory=Optimizer)
    batch_size: int = 64
    accumulate: int = 1
    warmup_epochs: float = 1.0
    schedule: Schedule = field(default_factory=Cosine)
    validate_every: int = 1
    validation_share: float | None = None
    select: Literal["best", "last"] = "best"
    engine: Engine = field(default_factory=lambda: Engine(fold=True))
    gradient_projection: GradientProjection | None = None
    averaging: Averaging | None = None
    head_scale: float = 1.0
    zeroed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "validate_every"):
            if getattr(self, name) < 1:
                raise ArgumentError(describe(name, "an integer >= 1", getattr(self, name)))
        if not 0 <= self.warmup_epochs <= self.epochs:
            expected = f"a number in [0, epochs = {self.epochs}]"
            raise ArgumentError(describe("warmup_epochs", expected, self.warmup_epochs))
        if self.optimizer.lr is None and not isinstance(self.tuning, Linear):
            expected = "a number > 0 where more than the head trains"
            raise ArgumentError(describe("optimizer.lr", expected, "null"))
        with inside("schedule"):
            self.schedule.check(self.epochs)
        check_positive("head_scale", self.head_scale)
        if self.validation_share is not None and not 0 < self.validation_share <= 1:
            expected = "a share of the passes in (0, 1]"
            raise ArgumentError(describe("validation_share", expected, self.validation_share))
        check_choice("select", self.select, ("best", "last"))
        if self.averaging and self.gradient_projection:
            fix = "Each epoch ends with a merge of its own: leave one out."
            raise ArgumentError(describe("averaging", "null with gradient_projection", "both", fix))
        if self.engine.dtype == torch.float16:
            fix = "Gradients of weights in fp16 need a scaled loss, which training lacks."
            raise ArgumentError(describe("engine.dtype", "float32 or bfloat16", "float16", fix))

    @property
    def solves(self) -> bool:
        """Whether the stage solves for the head at once (`train.linear_probe`), without a loop."""
        return self.optimizer.name == "lbfgs"

    def check_solver(self) -> None:
        """Raise `ArgumentError` for what lbfgs cannot do."""
        if not self.solves:
            return
        plain = Stage(epochs=1, tuning=Linear(), attack=None)
        alike = {"tuning": "linear", "attack": "null", "objective": "adversarial, plain"}
        alike |= {"gradient_projection": "null", "head_scale": "1", "epochs": "1"}
        alike |= {"averaging": "null"}
        for name, words in alike.items():
            if (got := getattr(self, name)) != getattr(plain, name):
                expected = f"{words}, with optimizer.name lbfgs"
                raise ArgumentError(describe(name, expected, got, "Or train by sgd or adamw."))

    @property
    def evaluation_engine(self) -> Engine:
        """How validation and test search: in the low precision that the stage asks for, if any.

        Not compiled: each batch has another number of images that are still right, and each number
        would be compiled anew.
        """
        engine = self.engine
        low = engine.low_precision_dtype or engine.tf32
        return replace(engine, compile=False) if low else engine.plain

    def part_size(self, world: int) -> int:
        """Images that each of `world` processes passes through the model at once."""
        count = self.batch_size
        for most in (world, self.accumulate):
            count = max(run.stop - run.start for run in shares(count, most))
        return count

    def memory_guard(self, name: str, device: torch.device) -> AbstractContextManager[None]:
        """Within, running out of memory names this stage's `batch_size`; `name` is its own."""
        where = f"stage '{name}': "
        return memory_guard("batch_size", self.batch_size, device, where=where, fix=IN_PARTS)

    def eps_share(self, epoch: int, accuracies: Sequence[float] = ()) -> float:
        """The radius of an epoch, counted from 0, as a share of the attack's (`EpsSchedule`)."""
        return self.eps_schedule.share(epoch, epochs=self.epochs, accuracies=accuracies)

    def passes(
        self,
        threat: ThreatModel,
        validation: Iterable[Attack],
        splits: Splits,
        accuracies: Sequence[float] = (),
    ) -> tuple[float, float]:
        """What takes as long as an update does for each of its images, and as the whole stage with
        its validations by these attacks: so many forwards of one image.

        A radius that waits for `accuracies`, those of `EpsSchedule.share`, is taken to rise as late
        as it can.
        """
        if self.solves:
            return 1.0, float(len(splits.train) + len(splits.val))
        update, training, look = self._costs(threat, validation, splits, accuracies)
        every, images = self.validation_plan(threat, validation, splits)
        return update, float(training + math.ceil(self.epochs / every) * images * look)

    def _costs(
        self,
        threat: ThreatModel,
        validation: Iterable[Attack],
        splits: Splits,
        accuracies: Sequence[float] = (),
    ) -> tuple[float, float, float]:
        """Passes of an image in an update, of the whole training, and of an image validated."""
        classes = splits.num_classes
        # one forward, and a backward for inputs and weights of twice that unless the head is all
        update = 1 if isinstance(self.tuning, Linear) else 3
        attack = attack_passes(self.attack.under(threat), classes) if self.attack else 0
        more = update * (self.objective.images(self.attack.under(threat)) - 1) if self.attack else 0
        halves = 2 if self.gradient_projection else 1
        look = 1 + sum(attack_passes(one, classes) for one in validation) if self.attack else 1
        look *= 2 if self.averaging else 1
        attacked = sum(self.eps_share(epoch, accuracies) > 0 for epoch in range(self.epochs))
        each = self.epochs * halves * update + attacked * (attack + more)
        return update + more + attack, len(splits.train) * each, look

    def validation_plan(
        self, threat: ThreatModel, validation: Iterable[Attack], splits: Splits
    ) -> tuple[int, int]:
        """Epochs between validations, and how many images each of them looks at."""
        every, images = self.validate_every, len(splits.val)
        share = self.validation_share or (0.2 if isinstance(self.attack, SingleStep) else 1.0)
        if share == 1 or self.attack is None:
            return every, images
        _update, training, look = self._costs(threat, validation, splits)
        most = training * share / (1 - share) / look  # images, of all validations together
        fewest = min(images, FEWEST)
        while every < self.epochs and math.ceil(self.epochs / every) * fewest > most:
            every += 1
        return every, max(fewest, min(images, int(most / math.ceil(self.epochs / every))))

    def lr_factor(self, update: int, *, steps: int) -> float:
        """Share of the peak rate at `update`, counted from 0, with `steps` updates an epoch."""
        return self.schedule.share(
            update, epochs=self.epochs, steps=steps, warmup=self.warmup_epochs
        )

    def prepare(self, model: Classifier, *, seed: int) -> list[str]:
        """Apply `tuning` and `head_scale` to `model` as the stage gets it, in place; returns the
        names of what trains.

        Raises:
            ArgumentError: the tuning cannot be applied to this model.
        """
        names = apply(model, self.tuning, seed=seed)
        with torch.no_grad():
            for parameter in model.head.parameters() if self.head_scale != 1 else ():
                parameter.mul_(self.head_scale)
            for name in names:
                if any(word in name for word in self.zeroed):
                    model.get_parameter(name).zero_()
        return names


@dataclass(frozen=True)
class Job:
    """One stage to run: what, on what, and where it is kept.

    `stage_id` (seed, method, stage) names it among the stages of the run, and its records.
    """

    stage: Stage
    model: Classifier
    splits: Splits
    threat: ThreatModel
    validation: Attack
    seed: int
    folder: Path
    stage_id: dict[str, str | int]
    on_collapse: OnCollapse = "steps"

    @property
    def name(self) -> str:
        """The stage's name, "probe" say."""
        return str(self.stage_id["stage"])


@dataclass(frozen=True)
class StageResult:
    """What a finished stage reports; accuracies are fractions on the validation split.

    `data_wait_share` is the share of `train_seconds` in which the loop waited for images.
    `train_images` counts the clean epochs of gradient projection too. `start_accuracies` is norm ->
    robust accuracy before the first update, where the objective was settled on it; empty elsewhere.
    `lr` is the peak rate, also where null chose it. `passes` are those planned, in forwards of one
    image; each validation looked at `validation_images`, `validated_every` so many epochs.
    `alignment` is the mean of the last epoch of single steps (`train.alignment`), `alarms` what the
    guard said. `candidates` are the accuracies of the best epoch's "raw" and "averaged" weights, of
    which the better ones are the result; empty without averaging.

    Of a stage that solves for the head, `strengths` has every strength tried: its head's norm,
    validation accuracy and loss, training loss, iterations, and whether they sufficed; `strength`
    is the chosen one and `head_norm` the Frobenius norm of its weight. `train_seconds` are those of
    the features and all solutions.
    """

    name: str
    epochs: int
    best_epoch: int
    best_validation_accuracy: float
    trainable_parameters: int
    train_images: int
    train_seconds: float
    train_images_per_second: float
    data_wait_share: float | None = None
    start_accuracies: dict[str, float] = field(default_factory=dict)
    lr: float | None = None
    passes: float | None = None
    validation_images: int | None = None
    validated_every: int | None = None
    alignment: float | None = None
    alarms: list[str] = field(default_factory=list)
    candidates: dict[str, float] = field(default_factory=dict)
    strength: float | None = None
    head_norm: float | None = None
    strengths: list[dict[str, Any]] = field(default_factory=list)
