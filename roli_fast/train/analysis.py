"""The light analysis of one method and seed of a run: analysis.json and examples.npz.

How much it looks at, and by which attack, follows from the configuration, so that another method
and another machine look at the same images; what would take too long is left out by name.
"""

import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

from roli_fast.analysis.examples import worth_showing, write_examples
from roli_fast.analysis.light import Point, Survey, calibrate
from roli_fast.attacks import PGD, Attack
from roli_fast.attacks.base import BallAttack
from roli_fast.data import Batch, ImageDataset, Splits
from roli_fast.data.splits import scaled
from roli_fast.errors import RunDirectoryError
from roli_fast.evaluate import attack_passes, robustness_curve
from roli_fast.evaluate.dataset import mixed_order
from roli_fast.files import naming, write_json
from roli_fast.models import Classifier
from roli_fast.norms import NORMS
from roli_fast.report.read import parse_analysis
from roli_fast.seeds import derive_seed
from roli_fast.train.context import Context
from roli_fast.train.experiment import Experiment
from roli_fast.train.run_directory import RunStage, run_stages

logger = logging.getLogger("roli_fast.train")

FILE, EXAMPLES = "analysis.json", "examples.npz"
"""In the folder of a method of a seed."""

SCHEMA_VERSION = 1

LIGHT = ("name", "lr", "epochs", "start", "end", "change")
"""What the light analysis says of a stage."""

SHOWN_OF = 64
"""Test images from which those of examples.npz are chosen."""

RADII = (0.25, 0.5, 1.0, 1.5, 2.0)
"""Of the curve, in multiples of the attack's eps."""

SHARE = 0.05
"""Of the passes of the run's training and validation: what the analysis may take."""

LEAST, LEAST_CALIBRATION = 32, 128
"""Images of a split below which parts are left out instead, and those that calibration needs: no
temperature is fitted to fewer than 100."""

MOST = 1000
"""Images of a split where the run itself was to have no analysis, and it is asked for later."""

MOST_PASSES = 400
"""An attack of more passes an image makes way for the validation's."""

TESTED, ATTACKED = ("curve", "calibration", "examples"), "attacked images"
LEFT_OUT = ((), TESTED[:1], TESTED[:2], TESTED, (*TESTED, ATTACKED))
"""What is left out, the dearest for its worth first. `TESTED` look at test images."""


@dataclass(frozen=True)
class Plan:
    """What is looked at.

    Args:
        attack: under the threat's first norm.
        points: images of the training and of the validation split that each model is shown, and of
            the test split for the curve.
        calibration: images of the validation and of the test split of the final model.
        left_out: the parts that would take too long.
        notes: what a reader should know.
    """

    attack: Attack
    points: int
    calibration: int
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def described(self) -> dict[str, Any]:
        """Label, norm and radius of the attack."""
        norm, eps = getattr(self.attack, "norm", None), getattr(self.attack, "eps", None)
        return {"label": self.attack.label, "norm": norm, "eps": eps}


def plan(experiment: Experiment, splits: Splits, images: int | None = None, world: int = 1) -> Plan:
    """What the analysis of each method and seed looks at.

    At most `analysis_images` of a split, and fewer where all passes would be more than a twentieth
    of those that each process makes for training and validation. Where that is less than `LEAST`
    images, parts are left out and named. `images` takes the place of all that: so many of each
    split, and every part.

    Args:
        experiment: the run's.
        splits: of its data.
        images: of each split, whatever they cost.
        world: processes that trained; one of them analyses.

    Raises:
        ArgumentError: what the test's attack refuses under the threat.
    """
    attack, notes = _attack(experiment, splits.num_classes)
    most = images or experiment.analysis_images or MOST
    found = Plan(attack, most, most, notes=notes)
    if images:
        return found
    counts, allowed = [most], SHARE * _training(experiment, splits) / world
    while counts[-1] > LEAST:
        counts.append(max(LEAST, counts[-1] * 9 // 10))
    for left_out, points in product(LEFT_OUT, counts):
        calibration = min(most, max(points, LEAST_CALIBRATION))
        found = replace(found, points=points, calibration=calibration, left_out=left_out)
        if _passes(experiment, splits, found) <= allowed:
            break
    if not found.left_out:
        return found
    note = "left out, for it would take more than a twentieth of the training: "
    note += f"{', '.join(found.left_out)}; python -m roli_fast.analyze RUN --images "
    return replace(found, notes=(*notes, f"{note}{LEAST_CALIBRATION} makes it"))


def first_images(dataset: ImageDataset, count: int) -> ImageDataset:
    """The first `count` images of a split, or as many as there are, in an order in which every
    beginning has its classes' proportions; without augmentation."""
    return dataset.plain().subset(mixed_order(dataset.labels, seed=0)[:count])


def _attack(experiment: Experiment, classes: int) -> tuple[Attack, tuple[str, ...]]:
    """The test's attack in the threat's first norm; the validation's where that one is too dear, or
    is no search in one ball."""
    tested = next(iter(experiment.evaluations("test").values()))
    if not isinstance(tested, BallAttack):
        reason = "is not one search in one ball"
    elif len(tested.parts) > 1 or attack_passes(tested, classes) > MOST_PASSES:
        reason = "would take too long"
    else:
        return tested, ()
    cheap = next(iter(experiment.evaluations("validation").values()))
    return cheap, (f"attacked by validation's {cheap.label}: {tested.label} {reason}",)


def _training(experiment: Experiment, splits: Splits) -> float:
    """Passes of a seed's training and its validation, in forwards of one image."""
    stages = [stage for method in experiment.methods for _, stage in experiment.stages(method)]
    stages += [experiment.pretrain] if experiment.source else []
    attacks = experiment.evaluations("validation").values()
    return sum(stage.passes(experiment.threat, attacks, splits)[1] for stage in stages)


def _passes(experiment: Experiment, splits: Splits, plan: Plan) -> float:
    """Of the analyses of a seed, likewise: a clean look is a forward, an attacked one one more
    after the search."""
    search = attack_passes(plan.attack, splits.num_classes)
    train, val, test = (min(plan.points, len(s)) for s in (splits.train, splits.val, splits.test))
    each = 0.0
    if "curve" not in plan.left_out:
        each += test * len(RADII) * search
    if "calibration" not in plan.left_out:
        own = [min(plan.calibration, len(split)) for split in (splits.val, splits.test)]
        each += (sum(own) - (val if val == own[0] else 0)) * (2 + search)
    if "examples" not in plan.left_out:
        each += min(SHOWN_OF, len(splits.test)) * (2 + search)
    total = each * len(experiment.methods)
    for method in experiment.methods:
        stages = len(experiment.stages(method))
        total += 2 * stages * (train + val)
        if ATTACKED not in plan.left_out:
            total += (stages + 1) * (train + val) * (1 + search) + stages * val
    return total


@dataclass
class MethodAnalysis:
    """What is looked at, and where it is written.

    Args:
        experiment: the run's.
        splits: of its data.
        run_dir: its folder, in which the method's stages are finished.
        seed: one of its seeds.
        method: one of its methods.
        context: where to compute, progress bars and signals.
        images: of each split, whatever they cost; None is what the plan allows.
        test: whether test images may be looked at; else calibration, curve and examples wait.
    """

    experiment: Experiment
    splits: Splits
    run_dir: Path
    seed: int
    method: str
    context: Context
    test: bool = True
    images: int | None = None
    _moved: Callable[[int], object] = field(default=int, init=False)
    _kept: dict[tuple[int, int], list[Batch]] = field(default_factory=dict, init=False)

    @property
    def folder(self) -> Path:
        """The method's, of this seed."""
        return self.run_dir / f"seed-{self.seed}" / self.method

    @cached_property
    def stages(self) -> list[RunStage]:
        """The method's, in their order."""
        place = (self.experiment, self.splits, self.run_dir, self.seed, self.method)
        return run_stages(*place)

    @cached_property
    def plan(self) -> Plan:
        """How much is looked at."""
        return plan(self.experiment, self.splits, self.images, self.context.distributed.world_size)

    @property
    def draws(self) -> int:
        """The seed of the attack's draws: that of the run's own test."""
        return derive_seed(self.seed, "test")

    def make(self, *, again: bool = False) -> None:
        """Write the analysis, unless all of it is there.

        What `python -m roli_fast.analyze` added to a stage is kept.

        Args:
            again: make it anew.

        Raises:
            InterruptedRunError: a signal came; nothing is written.
            RoliFastError: a file that the run should have is missing, a model has no linear head.
        """
        before = self._saved()
        if before and not again and self._whole(before):
            return
        started = time.perf_counter()
        with self.context.bar(f"seed {self.seed} {self.method}/analysis", total=self._total) as bar:
            self._moved = lambda count: bar.update(min(count, max(0, bar.total - bar.n)))
            tree = self._tree()
            bar.update(bar.total - bar.n)
        tree["seconds"] = time.perf_counter() - started
        for stage, old in zip(tree["stages"], before.get("stages", ()), strict=False):
            stage |= {name: part for name, part in old.items() if name not in LIGHT}
        write_json(self.folder / FILE, tree)

    def images_of(self, dataset: ImageDataset, count: int) -> Iterator[Batch]:
        """`first_images` of a split in batches that fit, on the device. They are read once: every
        model is shown the same few."""
        key, device = (id(dataset), count), self.context.device
        if key not in self._kept:
            chosen = first_images(dataset, count)
            rows = torch.arange(len(chosen)).split(self.stages[-1].stage.part_size(1))
            with ThreadPoolExecutor(max(1, self.context.workers)) as pool:
                self._kept[key] = list(pool.map(chosen.raw, rows))
        for x, y, ids in self._kept[key]:
            yield scaled(Batch(x.to(device), y.to(device), ids))

    def first_model(self, number: int) -> Classifier:
        """As stage `number`, counted from 1, began; on the device, in eval mode."""
        return self.stages[number - 1].starting_model().to(self.context.device).eval()

    def watch(self) -> None:
        """Called within the work: the other processes wait for no longer than between two calls.

        Raises:
            InterruptedRunError: a signal came.
            PeerError: another process is gone.
        """
        self.context.distributed.broadcast(True)
        self.context.check()

    def _after_batch(self, count: int) -> None:
        self._moved(count)
        self.watch()

    def _saved(self) -> dict[str, Any]:
        """The analysis that is there; empty where there is none that can be read."""
        path = self.folder / FILE
        if not path.is_file():
            return {}
        try:
            return read_analysis(path)
        except RunDirectoryError as error:  # damaged, or of another version
            logger.warning("%s It is made anew.", error)
            return {}

    def _whole(self, tree: dict[str, Any]) -> bool:
        """Whether it has all that would be made now; on how many images plays no part."""
        missing = set(TESTED if self.test else ()) - tree.keys() | set(tree.get("left_out", ()))
        return len(tree["stages"]) == len(self.stages) and missing <= set(self.plan.left_out)

    @property
    def _total(self) -> int:
        """At most how many images pass through a model, once for each way it sees them."""
        splits, plan = (self.splits.train, self.splits.val, self.splits.test), self.plan
        train, val, test = (min(plan.points, len(split)) for split in splits)
        calibration = sum(min(plan.calibration, len(split)) for split in splits[1:])
        stages = len(self.stages) * (4 * (train + val) + val)
        return stages + (2 * (calibration + SHOWN_OF) + test if self.test else 0)

    def _tree(self) -> dict[str, Any]:
        """All of it, but for the seconds and for what is made on demand."""
        splits, plan = self.splits, self.plan
        survey = Survey(
            None if ATTACKED in plan.left_out else plan.attack,
            partial(self.images_of, splits.train, plan.points),
            partial(self.images_of, splits.val, plan.points),
            seed=self.draws,
            after_batch=self._after_batch,
        )
        wanted = [part for part in TESTED if self.test and part not in plan.left_out]
        images = {"train": min(plan.points, len(splits.train))}
        images["validation"] = min(plan.points, len(splits.val))
        images["test"] = min(plan.calibration, len(splits.test)) * ("calibration" in wanted)
        tree: dict[str, Any] = {
            "schema": SCHEMA_VERSION,
            "attack": plan.described,
            "images": images,
            "notes": list(plan.notes),
            "left_out": list(plan.left_out),
            "stages": [],
        }
        model, end = None, None
        for stage in self.stages:
            start = survey.point(self.first_model(stage.number), end)
            model = stage.trained_model().to(self.context.device).eval()
            end = survey.point(model, start)
            own = {"name": stage.name, "lr": stage.result().lr, "epochs": stage.stage.epochs}
            points = {"start": start.as_json(), "end": end.as_json()}
            own |= points | {"change": survey.change(start, model, end)}
            tree["stages"].append(own)
        assert model is not None and end is not None, "every method has a stage"
        if "calibration" in wanted:
            tree["calibration"] = self._calibration(survey, model, end)
        if "examples" in wanted:
            tree["examples"] = self._examples(survey, model)
        if "curve" in wanted:
            tree["curve"] = self._curve(model, tree["notes"])
        return tree

    def _calibration(self, survey: Survey, model: Classifier, end: Point) -> dict[str, Any]:
        """Of the final model, whose validation images were seen already where they suffice."""
        count, seen = self.plan.calibration, end.validation
        if len(seen.clean) < min(count, len(self.splits.val)):
            seen = survey.look(model, partial(self.images_of, self.splits.val, count))
        test = survey.look(model, partial(self.images_of, self.splits.test, count))
        return calibrate(seen, test)

    def _curve(self, model: Classifier, notes: list[str]) -> dict[str, Any] | None:
        """Accuracy against the radius; None for an attack without one."""
        attack = self.plan.attack
        eps, bounds = getattr(attack, "eps", None), getattr(attack, "bounds", None)
        if not isinstance(attack, BallAttack) or not eps or not bounds:
            notes.append(f"no curve: {attack.label} has no one radius")
            return None
        if isinstance(attack, PGD):
            attack = replace(attack, step_size=None)  # a quarter of each radius
        limit = (bounds[1] - bounds[0]) * NORMS[str(attack.norm)].largest(None)
        curve = robustness_curve(
            model,
            self.images_of(self.splits.test, self.plan.points),
            attack,
            [eps * share for share in RADII if eps * share < limit],
            seed=self.draws,
            name=self.method,
            after_batch=self._after_batch,
        )
        return curve.as_json(eps)

    def _examples(self, survey: Survey, model: Classifier) -> str | None:
        """A few test images beside their attacked versions, of the run's first seed."""
        if self.seed != self.experiment.seeds[0]:
            return None
        pool = first_images(self.splits.test, SHOWN_OF)
        found = survey.look(model, partial(self.images_of, self.splits.test, SHOWN_OF), keep=True)
        rows = worth_showing(found)
        names = [pool.name(row) for row in rows]
        write_examples(self.folder / EXAMPLES, names, found.rows(rows), model)
        return EXAMPLES


def read_analysis(path: Path) -> dict[str, Any]:
    """What an analysis.json says.

    Raises:
        RunDirectoryError: it is damaged, or of another version; the field is named.
    """
    with naming(path, RunDirectoryError, "RUN", "an analysis of this version"):
        return parse_analysis(path)
