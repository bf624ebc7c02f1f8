"""One training stage: its configuration, what it is run on, and its result."""

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from roli_fast.attacks import PGD, Attack
from roli_fast.configuration import inside
from roli_fast.data import Splits, shares
from roli_fast.engine import Engine
from roli_fast.errors import ArgumentError, check_choice, describe
from roli_fast.evaluate import attack_passes
from roli_fast.models import Classifier
from roli_fast.peft import Full, Linear, Method, apply
from roli_fast.running.memory import IN_PARTS, memory_guard
from roli_fast.threat import ThreatModel, check_positive
from roli_fast.train.gradient_projection import GradientProjection
from roli_fast.train.objectives import Adversarial, Objective
from roli_fast.train.optim import Cosine, Optimizer, Schedule

UPDATE = 3
"""Passes of an update: one forward, and a backward for inputs and weights of twice that; where the
head trains alone the forward is all."""


def pgd_in_run(steps: int) -> PGD:
    """PGD whose norm, radius, step size and bounds follow the run's threat model."""
    return PGD(norm=None, eps=None, step_size=None, steps=steps, bounds=None)


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
        clean_epochs: the first epochs train on clean images; eases training from scratch.
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
        select: "best", the weights of the epoch that validates best; or "last", those of the last
            epoch, whatever validation says.
        engine: how the attack's passes are made, folded unless it says otherwise. dtype bfloat16
            makes the training passes so too, with weights, their gradients and the loss in fp32.
            Validation and test search in bf16 too; a find counts once the fp32 model confirms it.
        gradient_projection: trains each epoch on clean images as well, from the same weights, and
            merges both; null for none, {} for its defaults, and any of its fields switches it on.
            `epochs` and all the rest are those of the other half.
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
    clean_epochs: int = 0
    optimizer: Optimizer = field(default_factory=Optimizer)
    batch_size: int = 64
    accumulate: int = 1
    warmup_epochs: float = 1.0
    schedule: Schedule = field(default_factory=Cosine)
    validate_every: int = 1
    select: Literal["best", "last"] = "best"
    engine: Engine = field(default_factory=lambda: Engine(fold=True))
    gradient_projection: GradientProjection | None = None
    head_scale: float = 1.0
    zeroed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "validate_every"):
            if getattr(self, name) < 1:
                raise ArgumentError(describe(name, "an integer >= 1", getattr(self, name)))
        for name in ("clean_epochs", "warmup_epochs"):
            if not 0 <= getattr(self, name) <= self.epochs:
                raise ArgumentError(
                    describe(name, f"a number in [0, epochs = {self.epochs}]", getattr(self, name))
                )
        if self.optimizer.lr is None and not isinstance(self.tuning, Linear):
            expected = "a number > 0 where more than the head trains"
            raise ArgumentError(describe("optimizer.lr", expected, "null"))
        with inside("schedule"):
            self.schedule.check(self.epochs)
        check_positive("head_scale", self.head_scale)
        check_choice("select", self.select, ("best", "last"))
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
        for name, expected in alike.items():
            if (got := getattr(self, name)) != getattr(plain, name):
                fix = "Or train by sgd or adamw."
                raise ArgumentError(
                    describe(name, f"{expected}, with optimizer.name lbfgs", got, fix)
                )

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
        return _longest(_longest(self.batch_size, world), self.accumulate)

    def memory_guard(self, name: str, device: torch.device) -> AbstractContextManager[None]:
        """Within, running out of memory names this stage's `batch_size`; `name` is its own."""
        where = f"stage '{name}': "
        return memory_guard("batch_size", self.batch_size, device, where=where, fix=IN_PARTS)

    def passes(
        self, threat: ThreatModel, validation: Iterable[Attack], splits: Splits
    ) -> tuple[float, float]:
        """What takes as long as an update does for each of its images, and as the whole stage with
        its validations by these attacks: so many forwards of one image."""
        train, val, classes = len(splits.train), len(splits.val), splits.num_classes
        if self.solves:
            return 1.0, float(train + val)
        update = 1 if isinstance(self.tuning, Linear) else UPDATE
        attack = attack_passes(self.attack.under(threat), classes) if self.attack else 0
        halves = 2 if self.gradient_projection and self.gradient_projection.natural else 1
        look = 1 + sum(attack_passes(one, classes) for one in validation) if self.attack else 1
        whole = train * (self.epochs * halves * update + (self.epochs - self.clean_epochs) * attack)
        return update + attack, whole + math.ceil(self.epochs / self.validate_every) * val * look

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

    @property
    def name(self) -> str:
        """The stage's name, "probe" say."""
        return str(self.stage_id["stage"])


def _longest(count: int, most: int) -> int:
    return max(run.stop - run.start for run in shares(count, most))


@dataclass(frozen=True)
class StageResult:
    """What a finished stage reports; accuracies are fractions on the validation split.

    `data_wait_share` is the share of `train_seconds` in which the loop waited for images; None in
    results of versions that did not measure it. `train_images` counts the clean epochs of gradient
    projection too. `start_accuracies` is norm -> robust accuracy before the first update, where the
    objective was settled on it; empty elsewhere. `lr` is the peak rate, also where null chose it.

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
    strength: float | None = None
    head_norm: float | None = None
    strengths: list[dict[str, Any]] = field(default_factory=list)
