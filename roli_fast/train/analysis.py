"""The light analysis of one method and seed of a run: analysis.json and examples.npz.

How much it looks at, and by which attack, follows from the configuration, so that another method
and another machine look at the same images; what would take too many seconds is left out by name.
"""

import io
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from roli_fast.analysis import Gathered
from roli_fast.analysis.light import Look, Point, Survey, calibrate, joined
from roli_fast.analysis.view import gather
from roli_fast.attacks import PGD, Attack
from roli_fast.attacks.base import BallAttack
from roli_fast.data import Batch, ImageDataset, Splits
from roli_fast.data.splits import scaled
from roli_fast.errors import RunDirectoryError
from roli_fast.evaluate import attack_passes, robustness_curve
from roli_fast.evaluate.dataset import mixed_order
from roli_fast.files import naming, write_bytes, write_json
from roli_fast.models import Classifier
from roli_fast.norms import NORMS
from roli_fast.report.read import parse_analysis
from roli_fast.seeds import derive_seed
from roli_fast.threat import as_pixels
from roli_fast.train.context import Context
from roli_fast.train.experiment import Experiment
from roli_fast.train.run_directory import read_result, starting_model, trained_model

logger = logging.getLogger("roli_fast.train")

FILE, EXAMPLES = "analysis.json", "examples.npz"
"""In the folder of a method of a seed."""

SCHEMA_VERSION = 1

LIGHT = ("name", "lr", "epochs", "start", "end", "change")
"""What the light analysis says of a stage."""

SHOWN = 8
"""Test images in examples.npz."""

RADII = (0.25, 0.5, 1.0, 1.5, 2.0)
"""Of the curve, in multiples of the attack's eps."""

SHARE, FLOOR = 0.05, 5.0
"""Of the passes and of the seconds of the run's training and validation: what the analysis may
take; seconds that it may always take."""

SLOWER = 1.5
"""Seconds of an attack's pass over those of a forward: backwards, steps, small batches."""

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


def plan(experiment: Experiment, splits: Splits, images: int | None = None) -> Plan:
    """What the analysis of each method and seed looks at.

    At most `analysis_images` of a split, and fewer where all passes would be more than a twentieth
    of those that training and validation make. Where that is less than `LEAST` images, parts are
    left out and named. `images` takes the place of all that: so many of each split, and every part.

    Raises:
        ArgumentError: what the test's attack refuses under the threat.
    """
    attack, notes = _attack(experiment, splits.num_classes)
    if images:
        return Plan(attack, images, images, notes=notes)
    methods = experiment.methods
    allowed = SHARE * _training(experiment, splits)
    most = experiment.analysis_images or MOST
    return _first(
        Plan(attack, most, most, notes=notes),
        lambda found: _passes(experiment, splits, found, methods) <= allowed,
    )


def _first(whole: Plan, fits: Callable[[Plan], bool]) -> Plan:
    """The first plan that fits, of all that look at fewer images, or leave out more, or both: the
    last one if none does. What is left out is noted."""
    counts = [whole.points]
    while counts[-1] > LEAST:
        counts.append(max(LEAST, counts[-1] * 9 // 10))
    found = whole
    for left_out, points in product(LEFT_OUT[LEFT_OUT.index(whole.left_out) :], counts):
        calibration = min(whole.calibration, max(points, LEAST_CALIBRATION))
        found = replace(whole, points=points, calibration=calibration, left_out=left_out)
        if fits(found):
            break
    if not found.left_out or found.left_out == whole.left_out:
        return found
    what, command = ", ".join(found.left_out), "python -m roli_fast.analyze RUN --images"
    note = f"left out, for it would take more than a twentieth of the training: {what}"
    note = f"{note}; {command} {LEAST_CALIBRATION} makes it"
    return replace(found, notes=(*whole.notes, note))


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


def _passes(experiment: Experiment, splits: Splits, plan: Plan, methods: Sequence[str]) -> float:
    """Of the analyses of these methods, likewise: a clean look is a forward, an attacked one one
    more after the search."""
    search = attack_passes(plan.attack, splits.num_classes)
    train, val, test = (min(plan.points, len(s)) for s in (splits.train, splits.val, splits.test))
    total = 0.0
    if "curve" not in plan.left_out:
        total += test * len(RADII) * search
    if "calibration" not in plan.left_out:
        own = [min(plan.calibration, len(split)) for split in (splits.val, splits.test)]
        total += (sum(own) - val) * (2 + search)
    if "examples" not in plan.left_out:
        total += SHOWN * (2 + search) + LEAST * ("calibration" in plan.left_out)
    total *= len(methods)
    for method in methods:
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
    _now: Plan = field(init=False)
    _kept: dict[tuple[int, int, int], list[Batch]] = field(default_factory=dict, init=False)

    @property
    def folder(self) -> Path:
        """The method's, of this seed."""
        return self.run_dir / f"seed-{self.seed}" / self.method

    @cached_property
    def plan(self) -> Plan:
        """How much is looked at, by the passes alone."""
        return plan(self.experiment, self.splits, self.images)

    def _in_time(self) -> Plan:
        """The plan, with fewer images and without parts that would take more than a twentieth of
        the seconds in which the method was trained and validated, by a measured forward."""
        if self.images:
            return self.plan
        allowed = max(FLOOR, SHARE * self._trained())
        stages, began = len(self.experiment.stages(self.method)), time.perf_counter()
        model, images = self.first_model(1), list(self.images_of(self.splits.val, LEAST))
        building = 2 * stages * (time.perf_counter() - began)
        seconds = []
        for _ in range(2):  # the first one warms up
            began = time.perf_counter()
            gather(model, images)
            seconds.append(time.perf_counter() - began)
        forward = SLOWER * seconds[1] / sum(len(batch.y) for batch in images)

        def fits(found: Plan) -> bool:
            passes = _passes(self.experiment, self.splits, found, [self.method])
            return building + passes * forward <= allowed

        return _first(self.plan, fits)

    def _trained(self) -> float:
        """Seconds of the method's training, and of its validation in proportion to its passes."""
        seconds, validation = 0.0, self.experiment.evaluations("validation").values()
        paths = sorted(self.folder.glob("stage-*/result.json"))
        for path, (_, stage) in zip(paths, self.experiment.stages(self.method), strict=False):
            each, whole = stage.passes(self.experiment.threat, validation, self.splits)
            updates = whole if stage.solves else each * stage.epochs * len(self.splits.train)
            seconds += read_result(path).train_seconds * whole / updates
        return seconds

    @property
    def _title(self) -> str:
        return f"seed {self.seed} {self.method}/analysis"

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
        started, self._now = time.perf_counter(), self._in_time()
        with self.context.bar(self._title, total=self._total) as bar:
            self._moved = lambda count: bar.update(min(count, max(0, bar.total - bar.n)))
            tree = self._tree()
            bar.update(bar.total - bar.n)
        tree["seconds"] = time.perf_counter() - started
        for stage, old in zip(tree["stages"], before.get("stages", ()), strict=False):
            stage |= {name: part for name, part in old.items() if name not in LIGHT}
        write_json(self.folder / FILE, tree)

    def images_of(self, dataset: ImageDataset, count: int, start: int = 0) -> Iterator[Batch]:
        """`first_images` of a split in batches that fit, on the device. They are read once: every
        model is shown the same few."""
        key = (id(dataset), count, start)
        if key not in self._kept:
            chosen, size = (
                first_images(dataset, count, start),
                self.experiment.finetune.part_size(1),
            )
            rows = torch.arange(len(chosen)).split(size)
            with ThreadPoolExecutor(max(1, self.context.workers)) as pool:
                self._kept[key] = list(pool.map(chosen.raw, rows))
        device = self.context.device
        for x, y, ids in self._kept[key]:
            yield scaled(Batch(x.to(device), y.to(device), ids))

    def first_model(self, number: int) -> Classifier:
        """As stage `number`, counted from 1, began; on the device, in eval mode."""
        return self._model(starting_model, number)

    def last_model(self, number: int) -> Classifier:
        """As stage `number` ended."""
        return self._model(trained_model, number)

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

    def _model(self, build: Callable[..., Classifier], number: int) -> Classifier:
        run = (self.experiment, self.splits, self.seed, self.method, number, self.run_dir)
        return build(*run).to(self.context.device).eval()

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
        stages = len(tree["stages"]) == len(self.experiment.stages(self.method))
        slow = () if self.images else tree.get("too_slow", ())
        return stages and missing <= {*self.plan.left_out, *slow}

    @property
    def _total(self) -> int:
        """At most how many images pass through a model, once for each way it sees them."""
        train, val, test = (min(self._now.points, len(s)) for s in self._splits)
        calibration = sum(min(self._now.calibration, len(s)) for s in self._splits[1:])
        stages = len(self.experiment.stages(self.method)) * (4 * (train + val) + val)
        return stages + (2 * calibration + test + 3 * SHOWN if self.test else 0)

    @property
    def _splits(self) -> tuple[ImageDataset, ...]:
        return self.splits.train, self.splits.val, self.splits.test

    def _tree(self) -> dict[str, Any]:
        """All of it, but for the seconds and for what is made on demand."""
        plan = self._now
        count, left_out = plan.points, plan.left_out
        train, val, test = (len(split) for split in self._splits)
        survey = Survey(
            None if ATTACKED in left_out else plan.attack,
            partial(self.images_of, self.splits.train, count),
            partial(self.images_of, self.splits.val, count),
            seed=self.draws,
            after_batch=self._after_batch,
        )
        images = {"train": min(count, train), "validation": min(count, val)}
        tested = self.test and "calibration" not in left_out
        images["test"] = min(plan.calibration, test) if tested else 0
        tree: dict[str, Any] = {
            "schema": SCHEMA_VERSION,
            "attack": plan.described,
            "images": images,
            "notes": list(plan.notes),
            "left_out": list(left_out),
            "too_slow": [part for part in left_out if part not in self.plan.left_out],
            "stages": [],
        }
        model, end = None, None
        for number, (name, stage) in enumerate(self.experiment.stages(self.method), 1):
            start = survey.point(self.first_model(number), end)
            model = self.last_model(number)
            end = survey.point(model, start)
            own = {"name": name, "lr": None if stage.solves else stage.optimizer.lr}
            points = {"start": start.as_json(), "end": end.as_json()}
            own |= {"epochs": stage.epochs, **points, "change": survey.change(start, model, end)}
            tree["stages"].append(own)
        assert model is not None and end is not None, "every method has a stage"
        looked = None
        if tested:
            looked = survey.look(model, partial(self.images_of, self.splits.test, plan.calibration))
            tree["calibration"] = self._calibration(survey, model, end, looked)
        if self.test and "examples" not in left_out:
            tree["examples"] = self._examples(survey, model, looked)
        if self.test and "curve" not in left_out:
            tree["curve"] = self._curve(model, tree["notes"])
        return tree

    def _calibration(
        self, survey: Survey, model: Classifier, end: Point, test: Look
    ) -> dict[str, Any]:
        """Of the final model; the validation images that were seen are not looked at again."""
        count, seen = self._now.calibration, end.validation
        begin = len(seen.clean)
        if begin < min(count, len(self.splits.val)):
            more = survey.look(model, partial(self.images_of, self.splits.val, count, begin))
            assert seen.adversarial is not None and more.adversarial is not None
            clean = joined(seen.clean, more.clean)
            seen = Look(clean, joined(seen.adversarial, more.adversarial))
        return calibrate(seen, test)

    def _curve(self, model: Classifier, notes: list[str]) -> dict[str, Any] | None:
        """Accuracy against the radius; None for an attack without one."""
        attack = self._now.attack
        eps, bounds = getattr(attack, "eps", None), getattr(attack, "bounds", None)
        if not isinstance(attack, BallAttack) or not eps or not bounds:
            notes.append(f"no curve: {attack.label} has no one radius")
            return None
        if isinstance(attack, PGD):
            attack = replace(attack, step_size=None)  # a quarter of each radius
        whole = bounds[1] - bounds[0]
        limit = whole * NORMS[str(attack.norm)].largest(None)
        curve = robustness_curve(
            model,
            self.images_of(self.splits.test, self._now.points),
            attack,
            [eps * share for share in RADII if eps * share < limit],
            seed=self.draws,
            name=self.method,
            after_batch=self._after_batch,
        )
        return curve.as_json(eps)

    def _examples(self, survey: Survey, model: Classifier, looked: Look | None) -> str | None:
        """A few test images beside their attacked versions, of the run's first seed."""
        if self.seed != self.experiment.seeds[0]:
            return None
        if looked is None:
            first = partial(self.images_of, self.splits.test, LEAST)
            looked = Look(survey.clean(model, first), None)
        split = self.splits.test.plain()
        places = {sample: place for place, sample in enumerate(split.ids.tolist())}
        shown = split.subset([places[sample] for sample in worth_showing(looked)])
        found = survey.look(model, partial(self._all, shown), keep=True)
        clean, attacked = found.clean, found.adversarial
        assert attacked is not None and clean.x is not None and attacked.x is not None
        pixels = as_pixels(attacked.x, clean.x).to(clean.x.dtype) / 255
        size, device = self.experiment.finetune.part_size(1), self.context.device
        columns = [column.to(device).split(size) for column in (pixels, clean.y, clean.ids)]
        parts = [Batch(*part) for part in zip(*columns, strict=True)]
        rounded = survey.clean(model, lambda: parts, keep=True)
        names = [shown.name(place) for place in range(len(shown))]
        write_examples(self.folder / EXAMPLES, names, clean, attacked, rounded)
        return EXAMPLES

    def _all(self, shown: ImageDataset) -> Iterator[Batch]:
        """The images in batches that fit, on the device."""
        for rows in torch.arange(len(shown)).split(self.experiment.finetune.part_size(1)):
            x, y, ids = shown.batch(rows)
            yield Batch(x.to(self.context.device), y.to(self.context.device), ids)


def worth_showing(looked: Look) -> list[int]:
    """Ids of a few test images: those that the attack fools, and two that withstand it, as far as
    that is known; what is wrong before the attack comes where these are too few."""
    clean, attacked = looked.clean, looked.adversarial or looked.clean
    right = clean.logits.argmax(1) == clean.y
    stays = attacked.logits.argmax(1) == attacked.y
    fooled, withstood, wrong = (
        clean.ids[flags].tolist() for flags in (right & ~stays, right & stays, ~right)
    )
    first = fooled[: SHOWN - min(2, len(withstood))]
    return [*first, *withstood, *fooled[len(first) :], *wrong][:SHOWN]


def read_analysis(path: Path) -> dict[str, Any]:
    """What an analysis.json says.

    Raises:
        RunDirectoryError: it is damaged, or of another version; the field is named.
    """
    with naming(path, RunDirectoryError, "RUN", "an analysis of this version"):
        return parse_analysis(path)


def write_examples(
    path: Path, names: Sequence[str], clean: Gathered, attacked: Gathered, rounded: Gathered
) -> None:
    """Write n images and what one model makes of them.

    Arrays: "name", texts (n,); "clean" and "adversarial", uint8 (n, H, W, 3); "delta", their
    difference before rounding to pixels, float16 (n, H, W, 3); "label", "clean_prediction",
    "adversarial_prediction", int64 (n,); "clean_confidence", "adversarial_confidence", float32
    (n,): of the images as they are in the file; "unrounded_prediction", int64 (n,), of the attacked
    images before rounding.

    Args:
        path: the file, replaced whole.
        names: of the images.
        clean: with the images kept, (n, 3, H, W) in [0, 1].
        attacked: the same images under attack, kept too.
        rounded: those by `as_pixels`, kept too.
    """
    assert clean.x is not None and attacked.x is not None, "images are kept"
    assert rounded.x is not None, "images are kept"
    arrays: dict[str, Any] = {
        "name": np.array([name.encode(errors="replace").decode() for name in names]),
        "clean": _last(as_pixels(clean.x, clean.x)),
        "adversarial": _last(as_pixels(rounded.x, clean.x)),
        "delta": _last(attacked.x - clean.x).astype(np.float16),
        "label": clean.y.numpy(),
        "unrounded_prediction": attacked.logits.argmax(1).numpy(),
    }
    for name, found in (("clean", clean), ("adversarial", rounded)):
        confidence, prediction = found.logits.softmax(1).max(1)
        arrays[f"{name}_prediction"] = prediction.numpy()
        arrays[f"{name}_confidence"] = confidence.numpy().astype(np.float32)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_bytes(path, buffer.getvalue())


def _last(x: Tensor) -> np.ndarray:
    """(n, 3, H, W) as (n, H, W, 3)."""
    return x.permute(0, 2, 3, 1).numpy()
