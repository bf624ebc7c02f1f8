"""How much the light analysis of a run looks at, and by which attack: a matter of the configuration
alone, so that a resumed run, another method and another machine look at the same images."""

from dataclasses import dataclass
from typing import Any

from roli_fast.analysis import attack_cost
from roli_fast.analysis.light import look_cost
from roli_fast.attacks import Attack
from roli_fast.attacks.base import BallAttack
from roli_fast.data import ImageDataset, Splits
from roli_fast.evaluate.prepare import mixed_order
from roli_fast.train.experiment import Experiment
from roli_fast.train.stage import Stage

SHARE = 0.05
"""Of the passes that the run's training makes: what the analysis may take."""

LEAST, LEAST_CALIBRATION = 64, 256
"""Images of a split that are looked at all the same, and of those that calibration needs."""

MOST_PASSES = 400
"""An attack of more passes an image makes way for the validation's."""

MOST_BYTES = 2**29
"""Attacked validation images of one model are kept in memory, in fp32."""

RADII = (0.25, 0.5, 1.0, 1.5, 2.0)
"""Of the curve, in multiples of the attack's eps."""

UPDATE = 3
"""Passes of an update: one forward, and a backward for inputs and weights of twice that."""


@dataclass(frozen=True)
class Plan:
    """What is looked at.

    Args:
        attack: under the threat's first norm.
        points: images of the training and of the validation split that each model is shown, and of
            the test split for the curve.
        calibration: images of the validation and of the test split of the final model.
        notes: what a reader should know.
    """

    attack: Attack
    points: int
    calibration: int
    notes: tuple[str, ...] = ()

    @property
    def described(self) -> dict[str, Any]:
        """Label, norm and radius of the attack."""
        norm, eps = getattr(self.attack, "norm", None), getattr(self.attack, "eps", None)
        return {"label": self.attack.label, "norm": norm, "eps": eps}


def plan(experiment: Experiment, splits: Splits, images: int | None = None) -> Plan:
    """What the analysis of each method and seed looks at.

    At most `analysis_images` of a split, and fewer where all passes would be more than a twentieth
    of those that training makes; 64 (for calibration 256) in any case where the split has them.
    `images` takes the place of all that: so many of each split.

    Raises:
        ArgumentError: what the test's attack refuses under the threat.
    """
    attack, notes = _attack(experiment, splits.num_classes)
    if images:
        return Plan(attack, images, images, notes)
    most = experiment.analysis_images
    image = splits.train.image_size**2 * 3 * 4
    points = min(most, max(LEAST, _affordable(experiment, splits, attack)), MOST_BYTES // image)
    calibration = min(most, max(LEAST_CALIBRATION, points))
    return Plan(attack, max(1, points), max(1, calibration), notes)


def first_images(dataset: ImageDataset, count: int, start: int = 0) -> ImageDataset:
    """Images `start` to `count` of a split in an order in which every beginning has its classes'
    proportions, without augmentation; as many as there are."""
    return dataset.plain().subset(mixed_order(dataset.labels, seed=0)[start:count])


def _attack(experiment: Experiment, classes: int) -> tuple[Attack, tuple[str, ...]]:
    """The test's attack in the threat's first norm; the validation's where that one is too dear, or
    is no search in one ball."""
    tested = next(iter(experiment.evaluations("test").values()))
    if not isinstance(tested, BallAttack):
        reason = "is not one search in one ball"
    elif _too_dear(tested, classes):
        reason = "would take too long"
    else:
        return tested, ()
    cheap = next(iter(experiment.evaluations("validation").values()))
    return cheap, (f"attacked by validation's {cheap.label}: {tested.label} {reason}",)


def _too_dear(attack: Attack, classes: int) -> bool:
    """Whether it is a series, or makes more passes an image than may be; counted last."""
    known = max(2 * getattr(attack, "steps", 0), getattr(attack, "n_queries", 0))
    if len(attack.parts) > 1 or known > MOST_PASSES:
        return True
    return _passes(attack, classes) > MOST_PASSES


def _affordable(experiment: Experiment, splits: Splits, attack: Attack) -> int:
    """Images for which the analysis of all methods keeps within its share."""
    classes, training, each = splits.num_classes, 0.0, 0.0
    if experiment.source:
        training += _training(experiment, experiment.pretrain, splits)
    for method in experiment.methods:
        stages = [stage for _, stage in experiment.stages(method)]
        training += sum(_training(experiment, stage, splits) for stage in stages)
        looks = 2 * (len(stages) + 1) + 1  # two splits of every model, the test of the last one
        each += looks * look_cost(attack, 1, classes).forward_units + len(stages)
        each += len(RADII) * _passes(attack, classes)
    return int(SHARE * training / each)


def _training(experiment: Experiment, stage: Stage, splits: Splits) -> float:
    """Passes of a stage's training, in forwards of one image."""
    attack = stage.attack.under(experiment.threat) if stage.attack else None
    each = UPDATE + (_passes(attack, splits.num_classes) if attack else 0)
    return stage.epochs * len(splits.train) * each


def _passes(attack: Attack, classes: int) -> float:
    return attack_cost(attack, 1, classes=classes).forward_units
