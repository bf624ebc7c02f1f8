"""What is looked at before anything is written: data, model, heads, tunings."""

import copy
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from roli_fast import peft
from roli_fast.data import Splits
from roli_fast.data.inspection import inspect_images
from roli_fast.errors import ArgumentError, ConfigError, DataError, describe
from roli_fast.models import Classifier, create, trained_classes
from roli_fast.running.device import pick_threads
from roli_fast.train.experiment import KEEPS_HEAD, Experiment
from roli_fast.train.images import all_parts, as_begun

logger = logging.getLogger(__name__)


def check_same_images(found: Sequence[Mapping[str, str]]) -> None:
    """Each process read the data for itself."""
    for rank, other in enumerate(found):
        different = [name for name, value in found[0].items() if other.get(name) != value]
        if different:
            got = f"another {', another '.join(different)} in process {rank}"
            fix = "All must read the same files."
            raise DataError(describe("data", "the same in every process", got, fix))


@dataclass(frozen=True)
class Checked:
    """What a check has found: the splits of data and source, the rows of `as_begun` that are gone,
    the hashes of all images by split, and the CPU threads that suit the model."""

    data: Splits
    source: Splits | None
    dropped: dict[str, list[int]]
    hashes: dict[str, list[str]]
    threads: int

    @property
    def splits(self) -> dict[str, Splits | None]:
        """By their names."""
        return {"data": self.data, "source": self.source}


def check(
    experiment: Experiment, *, begun: Path | None = None, look: bool = True, quiet: bool = True
) -> Checked:
    """Read the data and build the model, as far as that finds mistakes; trains and writes nothing.

    Args:
        experiment: the run's.
        begun: the folder of a run that goes on: the images are those that it began with.
        look: read every image file, and decode it where the run is a new one.
        quiet: no progress bar.

    Raises:
        RoliFastError: what a user can mend.
    """
    source = experiment.source.load() if experiment.source else None
    splits, dropped = {"data": experiment.data.load(), "source": source}, {}
    if begun:
        splits, dropped = as_begun(begun, splits)
    for name, found in splits.items():
        if found:
            logger.info("%s: %s", name, found.summary())
    hashes = {}
    if look:
        decode = not (begun and (begun / "environment.json").is_file())
        hashes = inspect_images(all_parts(splits), decode=decode, quiet=quiet)
    data, source = splits["data"], splits["source"]
    assert data is not None
    return Checked(data, source, dropped, hashes, _check_model(experiment, data, source))


def _check_model(experiment: Experiment, splits: Splits, source: Splits | None) -> int:
    """Build the model once for every image size, say what it is, and choose the threads."""
    for found in filter(None, (splits, source)):
        if found.num_classes < 2:
            fix = "The folder may be one level too high, or too low."
            raise DataError(describe("classes", "two or more classes", list(found.classes), fix))
    size = splits.train.image_size
    if source:
        create(
            experiment.model,
            num_classes=source.num_classes,
            image_size=source.train.image_size,
        )
    keeps_head = KEEPS_HEAD in experiment.methods
    if keeps_head:
        _check_head(experiment, splits, source)
    model = create(
        experiment.model,
        num_classes=splits.num_classes,
        image_size=size,
        with_head=keeps_head and not source,
    )
    card = model.card
    logger.info("model: %s, mean %s, std %s", card["name"], card["mean"], card["std"])
    _check_stages(experiment, model, splits)
    config = experiment.model
    robust_needed = {"roli", "probe", "lp", "lp_ft"} & set(experiment.methods)
    if robust_needed and not (config.weights or config.pretrained or source):
        logger.warning(
            "the backbone has random weights: a linear probe of it learns little. Name a robust "
            "backbone as model.weights, or pretrain one with --source."
        )
    return pick_threads(model, size, experiment.finetune.batch_size)


def _check_head(experiment: Experiment, splits: Splits, source: Splits | None) -> None:
    """The method that keeps the head has one to begin with, for these classes."""
    config = experiment.model
    if not (config.weights or config.pretrained or source):
        got = "no weights"
        fix = "Add --model.weights FILE, a robust model with its head, or take --methods scratch."
        expected = f"a trained classifier for the method {KEEPS_HEAD}"
        raise ConfigError(describe("model.weights", expected, got, fix))
    field, own = ("source", source.classes) if source else ("model.weights", None)
    own = own or trained_classes(config) or splits.classes  # files of others do not tell
    if own != splits.classes:
        # as many, or the same in another order, would train without a word from a wrong head
        got = f"{_few(own)}, where data has {_few(splits.classes)}"
        fix = "With --methods ranli the head is a fresh one."
        expected = f"data's classes in their order for the method {KEEPS_HEAD}"
        raise ConfigError(describe(field, expected, got, fix))


def _few(classes: tuple[str, ...]) -> str:
    """Names in their order, of many the first ones."""
    more = ", ..." if len(classes) > 5 else ""
    return f"{len(classes)} classes ({', '.join(classes[:5])}{more})"


def _check_stages(experiment: Experiment, model: Classifier, splits: Splits) -> None:
    """Try every stage's method, and a batch of one image, on a copy of the model."""
    used = {name: stage for m in experiment.methods for name, stage in experiment.stages(m)}
    if experiment.source:
        used["pretrain"] = experiment.pretrain
    for name, stage in used.items():
        copied = copy.deepcopy(model)
        try:
            peft.apply(copied, stage.tuning)
            if stage.gradient_projection:
                stage.gradient_projection.check(copied.state_dict())
        except ArgumentError as error:
            raise ArgumentError(_in_stage(name, str(error))) from error
        if stage.batch_size == 1 and not stage.solves:
            stage.tuning.train_mode(copied)
            own = name.removesuffix("_matched")
            field = own if getattr(experiment, own) else "finetune"  # which it follows
            _check_one_image(f"{field}.batch_size", copied, splits)
        if name == "pretrain" and experiment.source and "tuning" in copied.card:
            raise ConfigError(
                describe(
                    "pretrain.tuning",
                    "a method that adds no modules, full say: later stages start from the backbone",
                    stage.tuning,
                )
            )
        if name in ("finetune", "ft") and not stage.tuning.keeps_function:
            logger.warning(
                "%s.tuning changes the function at once, so the probed head does not fit it; "
                "compare with --methods %s.",
                name,
                "ft" if name == "ft" else "ranli",
            )


def _check_one_image(field: str, model: Classifier, splits: Splits) -> None:
    """BatchNorm in training mode has no variance where one image's features are 1 x 1."""
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            model(splits.train.plain().batch(torch.tensor([0])).x)
    except ValueError as error:
        if "more than 1 value per channel" in str(error):
            expected = "an integer >= 2 for a model with BatchNorm in training mode"
            raise ConfigError(describe(field, expected, 1)) from error


def _in_stage(stage: str, text: str) -> str:
    """A method's error with the field's whole name: `rank` is `finetune.tuning.rank`."""
    if text.startswith("`merge_statistics`"):
        return f"`{stage}.gradient_projection.{text[1:]}"
    text = text.replace("`tuning`", f"`{stage}.tuning`", 1)
    return re.sub(r"^`(\w+)`", rf"`{stage}.tuning.\1`", text)
