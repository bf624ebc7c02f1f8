"""The light analysis of one method and seed of a run, part by part: analysis.json, examples.npz."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from roli_fast.analysis import Cost, attack_cost
from roli_fast.analysis.light import Look, Point, Survey, calibrate, joined, look_cost
from roli_fast.attacks import PGD
from roli_fast.attacks.base import BallAttack
from roli_fast.data import Batch, ImageDataset, Splits, batches
from roli_fast.errors import RunDirectoryError
from roli_fast.evaluate import robustness_curve
from roli_fast.files import naming, write_json
from roli_fast.models import Classifier
from roli_fast.report.read import parse_analysis
from roli_fast.seeds import derive_seed
from roli_fast.threat import as_pixels
from roli_fast.train.analysis_plan import RADII, Plan, first_images, plan
from roli_fast.train.context import Context
from roli_fast.train.examples import write_examples
from roli_fast.train.experiment import Experiment
from roli_fast.train.starting import starting_model, trained_model

logger = logging.getLogger("roli_fast.train")

FILE, EXAMPLES = "analysis.json", "examples.npz"
"""In the folder of a method of a seed."""

AFTER_STAGES = ("calibration", "curve", "examples")
"""What the final model's test images tell."""

LIGHT = ("name", "lr", "epochs", "start", "end", "change")
"""What the light analysis says of a stage."""

SHOWN = 8
"""Test images in examples.npz."""

SCHEMA_VERSION = 1


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
    _end: tuple[Classifier, Point] | None = field(default=None, init=False)

    @property
    def folder(self) -> Path:
        """The method's, of this seed."""
        return self.run_dir / f"seed-{self.seed}" / self.method

    @cached_property
    def plan(self) -> Plan:
        """How much is looked at."""
        return plan(self.experiment, self.splits, self.images)

    def missing(self, tree: dict[str, Any]) -> list[str]:
        """Names of the parts that are not there yet, in the order in which they are made."""
        stages = [name for name, _ in self.experiment.stages(self.method)]
        left = stages[len(tree.get("stages", [])) :]
        return left + [name for name in AFTER_STAGES if self.test and name not in tree]

    def steps(self, *, again: bool = False) -> Iterator[str]:
        """Make what is missing; yields the name of each part once it is saved.

        Args:
            again: make all of it anew.

        Raises:
            InterruptedRunError: a signal came; the parts before are saved.
            RoliFastError: a file that the run should have is missing, a model has no linear head.
        """
        before = self._saved()
        tree = {} if again else before
        left = self.missing(tree)
        if not left:
            return
        if not tree:
            tree = self._empty()
        kept = [_deep_parts(stage) for stage in before.get("stages", [])]
        logger.info("%s", self.cost(left).named(f"{self._title} of {', '.join(left)}"))
        planned = [self._images_seen(name) for name in left]
        with self.context.bar(self._title, total=sum(planned)) as bar:
            self._moved = lambda count: bar.update(min(count, max(0, bar.total - bar.n)))
            for place, name in enumerate(left, 1):
                started = time.perf_counter()
                if name in AFTER_STAGES:
                    tree[name] = getattr(self, f"_{name}")(tree)
                else:
                    number = len(tree["stages"])
                    deep = kept[number] if number < len(kept) else {}
                    tree["stages"].append(self._stage(number + 1) | deep)
                tree["seconds"] += time.perf_counter() - started
                # a stop before all stages are there leaves the old file: deep parts took minutes
                if len(tree["stages"]) >= len(kept) or not any(kept):
                    write_json(self.folder / FILE, tree)
                bar.update(sum(planned[:place]) - bar.n)
                yield name
        self._end = None

    def cost(self, parts: Sequence[str]) -> Cost:
        """The most that these parts cost."""
        attack, classes = self.plan.attack, self.splits.num_classes
        total = Cost("")
        for name in parts:
            if name == "curve":
                searches = len(RADII) * self._count("curve")
                total += attack_cost(attack, searches, classes=classes).named("")
            else:  # half of the images seen are attacked
                total += look_cost(attack, self._images_seen(name) // 2, classes).named("")
        return total

    def _images_seen(self, part: str) -> int:
        """At most how many images a part passes through a model, once for each way it sees them."""
        train, val = (min(self.plan.points, len(s)) for s in (self.splits.train, self.splits.val))
        if part == "calibration":
            return 2 * (self._count(part) + min(self.plan.calibration, len(self.splits.val)))
        if part in AFTER_STAGES:
            return self._count(part) * (3 if part == "examples" else 1)  # clean, attacked, rounded
        return 4 * (train + val) + val

    def _count(self, part: str) -> int:
        """Test images of a part."""
        most = {"calibration": self.plan.calibration, "curve": self.plan.points, "examples": SHOWN}
        return min(most[part], len(self.splits.test))

    @property
    def _title(self) -> str:
        return f"seed {self.seed} {self.method}/analysis"

    def _saved(self) -> dict[str, Any]:
        """The parts that an earlier start made of the same images; empty where there are none."""
        path = self.folder / FILE
        if not path.is_file():
            return {}
        try:
            tree = read_analysis(path)
        except RunDirectoryError as error:  # damaged, or of another version
            logger.warning("%s It is made anew.", error)
            return {}
        if tree["images"].get("test", 0) == 0:
            tree = {name: part for name, part in tree.items() if name not in AFTER_STAGES}
        same = _looked_at(tree) == _looked_at(self._empty())
        return tree if same or not self.missing(tree) else {}

    def _empty(self) -> dict[str, Any]:
        count = self.plan.points
        return {
            "schema": SCHEMA_VERSION,
            "seconds": 0.0,
            "attack": self.plan.described,
            "images": {
                "train": min(count, len(self.splits.train)),
                "validation": min(count, len(self.splits.val)),
                "test": 0,
            },
            "notes": list(self.plan.notes),
            "stages": [],
        }

    def images_of(self, dataset: ImageDataset, count: int, start: int = 0) -> Iterator[Batch]:
        """`first_images` of a split in batches that fit, on the device."""
        return batches(
            first_images(dataset, count, start),
            batch_size=self.experiment.finetune.part_size(1),
            seed=0,
            epoch=0,
            shuffle=False,
            workers=self.context.workers,
            device=self.context.device,
        )

    @property
    def draws(self) -> int:
        """The seed of the attack's draws: that of the run's own test."""
        return derive_seed(self.seed, "test")

    def first_model(self, number: int) -> Classifier:
        """As stage `number`, counted from 1, began; on the device, in eval mode."""
        return self._model(starting_model, number)

    def last_model(self, number: int) -> Classifier:
        """As stage `number` ended."""
        return self._model(trained_model, number)

    @cached_property
    def _survey(self) -> Survey:
        return Survey(
            self.plan.attack,
            partial(self.images_of, self.splits.train, self.plan.points),
            partial(self.images_of, self.splits.val, self.plan.points),
            seed=self.draws,
            after_batch=self._after_batch,
        )

    def _after_batch(self, count: int) -> None:
        self._moved(count)
        self.watch()

    def watch(self) -> None:
        """Called within a part: the other processes wait for no longer than between two calls.

        Raises:
            InterruptedRunError: a signal came.
            PeerError: another process is gone.
        """
        self.context.team.from_first(True)
        self.context.check()

    def _model(self, build: Callable[..., Classifier], number: int) -> Classifier:
        run = (self.experiment, self.splits, self.seed, self.method, number, self.run_dir)
        return build(*run).to(self.context.device).eval()

    def _stage(self, number: int) -> dict[str, Any]:
        """The model as the stage began and as it ended, and what changed between."""
        name, stage = self.experiment.stages(self.method)[number - 1]
        survey, before = self._survey, self._end[1] if self._end else None
        start = survey.point(self.first_model(number), before)
        model = self.last_model(number)
        end = survey.point(model, start)
        self._end = (model, end)
        return {
            "name": name,
            "lr": None if stage.solves else stage.optimizer.lr,
            "epochs": stage.epochs,
            "start": start.as_json(),
            "end": end.as_json(),
            "change": survey.change(start, model, end),
        }

    @property
    def _final(self) -> Classifier:
        """The method's model."""
        if self._end:
            return self._end[0]
        return self.last_model(len(self.experiment.stages(self.method)))

    def _calibration(self, tree: dict[str, Any]) -> dict[str, Any]:
        model, count, survey = self._final, self.plan.calibration, self._survey
        seen = self._end[1].validation if self._end else None
        parts: dict[str, Look] = {}
        for name, known in (("val", seen), ("test", None)):
            dataset: ImageDataset = getattr(self.splits, name)
            begin = len(known.clean) if known else 0
            if begin < min(count, len(dataset)):
                more = survey.look(model, partial(self.images_of, dataset, count, begin))
                known = _joined(known, more) if known else more
            assert known is not None, "no split is empty"
            parts[name] = known
        tree["images"]["test"] = len(parts["test"].clean)
        return calibrate(parts["val"], parts["test"])

    def _curve(self, tree: dict[str, Any]) -> dict[str, Any] | None:
        """Accuracy against the radius; None for an attack without one."""
        attack = self.plan.attack
        eps, bounds = getattr(attack, "eps", None), getattr(attack, "bounds", None)
        if not isinstance(attack, BallAttack) or not eps or not bounds:
            tree["notes"].append(f"no curve: {attack.label} has no one radius")
            return None
        if isinstance(attack, PGD):
            attack = replace(attack, step_size=None)  # a quarter of each radius
        whole = bounds[1] - bounds[0]
        radii = [eps * share for share in RADII]
        radii = [r for r in radii if attack.norm != "linf" or r < whole]
        images = self.images_of(self.splits.test, self.plan.points)
        curve = robustness_curve(
            self._final,
            images,
            attack,
            radii,
            seed=self.draws,
            name=self.method,
            after_batch=self._after_batch,
        )
        return curve.as_json(population=len(self.splits.test))

    def _examples(self, tree: dict[str, Any]) -> str | None:
        """A few test images beside their attacked versions, of the run's first seed."""
        if self.seed != self.experiment.seeds[0]:
            return None
        images = partial(self.images_of, self.splits.test, SHOWN)
        clean = self._survey.clean(self._final, images, keep=True)
        attacked = self._survey.attacked(self._final, images, keep=True)
        assert clean.x is not None and attacked.x is not None
        pixels = as_pixels(attacked.x, clean.x).to(clean.x.dtype) / 255
        size, device = self.experiment.finetune.part_size(1), self.context.device
        columns = [column.to(device).split(size) for column in (pixels, clean.y, clean.ids)]
        parts = [Batch(*part) for part in zip(*columns, strict=True)]
        rounded = self._survey.clean(self._final, lambda: parts, keep=True)
        write_examples(self.folder / EXAMPLES, clean, attacked, rounded)
        return EXAMPLES


def read_analysis(path: Path) -> dict[str, Any]:
    """What an analysis.json says.

    Raises:
        RunDirectoryError: it is damaged, or of another version; the field is named.
    """
    with naming(path, RunDirectoryError, "RUN", "an analysis of this version"):
        return parse_analysis(path)


def _looked_at(tree: dict[str, Any]) -> list[Any]:
    """By what parts of one analysis must agree."""
    images = {name: count for name, count in tree["images"].items() if name != "test"}
    return [tree["schema"], tree["attack"], images]


def _deep_parts(stage: dict[str, Any]) -> dict[str, Any]:
    """What `python -m roli_fast.analyze` added to a stage."""
    return {name: part for name, part in stage.items() if name not in LIGHT}


def _joined(first: Look, rest: Look) -> Look:
    return Look(joined(first.clean, rest.clean), joined(first.adversarial, rest.adversarial))
