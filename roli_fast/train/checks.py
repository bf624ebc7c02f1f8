"""What is looked at before anything is written: data, model, heads, tunings."""

import copy
import logging
from dataclasses import dataclass

from roli_fast import peft
from roli_fast.configuration import inside
from roli_fast.configuration.values import field_types
from roli_fast.data import DataSource, Splits
from roli_fast.data.inspection import inspect_images
from roli_fast.errors import ConfigError, DataError, describe
from roli_fast.models import Classifier, create, trained_classes
from roli_fast.running.device import pick_threads
from roli_fast.train.experiment import KEEPS_HEAD, Experiment
from roli_fast.train.objectives import attach
from roli_fast.train.run_directory import all_parts, identity

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checked:
    """What a check has found: the splits of data and source, the `identity` of a run on them, and
    the CPU threads that suit the model."""

    data: Splits
    source: Splits | None
    identity: dict[str, str]
    threads: int


def check(
    experiment: Experiment, *, look: bool = True, decode: bool = True, quiet: bool = True
) -> Checked:
    """Read the data and build the model, as far as that finds mistakes; trains and writes nothing.

    Args:
        experiment: the run's.
        look: read every image file; without, the identity is empty.
        decode: decode them, too, as the beginning of a run does.
        quiet: no progress bar.

    Raises:
        RoliFastError: what a user can mend.
    """
    data = _loaded("data", experiment.data)
    source = _loaded("source", experiment.source) if experiment.source else None
    splits = {"data": data, "source": source}
    for name, found in splits.items():
        if found:
            logger.info("%s: %s", name, found.summary())
            if found.num_classes < 2:
                fix = "The folder may be one level too high, or too low."
                got = list(found.classes)
                raise DataError(describe("classes", "two or more classes", got, fix))
    known: dict[str, str] = {}
    if look:
        hashes = inspect_images(all_parts(splits), decode=decode, quiet=quiet)
        known = identity(experiment, splits, hashes)
    return Checked(data, source, known, _check_model(experiment, data, source))


def _loaded(name: str, source: DataSource) -> Splits:
    with inside(name, field_types(type(source))):
        return source.load()


def _check_model(experiment: Experiment, splits: Splits, source: Splits | None) -> int:
    """Build the model once for every image size, say what it is, and choose the threads."""
    config, size = experiment.model, splits.train.image_size
    if source:
        create(config, num_classes=source.num_classes, image_size=source.train.image_size)
    keeps_head = KEEPS_HEAD in experiment.methods
    if keeps_head:
        _check_head(experiment, splits, source)
    with_head = keeps_head and not source
    model = create(config, num_classes=splits.num_classes, image_size=size, with_head=with_head)
    card = model.card
    logger.info("model: %s, mean %s, std %s", card["name"], card["mean"], card["std"])
    _check_stages(experiment, model)
    probes = {"roli", "probe", "lp", "lp_ft"} & set(experiment.methods)
    if probes and not (config.has_weights or source):
        logger.warning(
            "the backbone has random weights: a linear probe of it learns little. Name a robust "
            "backbone as model.weights, or pretrain one with --source."
        )
    return pick_threads(model, size, experiment.finetune.batch_size)


def _check_head(experiment: Experiment, splits: Splits, source: Splits | None) -> None:
    """The method that keeps the head has one to begin with, for these classes."""
    config = experiment.model
    if not (config.has_weights or source):
        fix = "Add --model.weights FILE, a robust model with its head, or take --methods scratch."
        expected = f"a trained classifier for the method {KEEPS_HEAD}"
        raise ConfigError(describe("model.weights", expected, "no weights", fix))
    field, own = ("source", source.classes) if source else ("model.weights", None)
    own = own or trained_classes(config) or splits.classes  # files of others do not tell
    if own != splits.classes:
        # as many, or the same in another order, would train without a word from a wrong head
        got = f"{_few(own)}, where data has {_few(splits.classes)}"
        fix = "With --methods ranli the head is a fresh one."
        expected = f"data's classes in their order for the method {KEEPS_HEAD}"
        raise ConfigError(describe(field, expected, got, fix))


def _few(classes: tuple[str, ...]) -> str:
    more = ", ..." if len(classes) > 5 else ""
    return f"{len(classes)} classes ({', '.join(classes[:5])}{more})"


def _check_stages(experiment: Experiment, model: Classifier) -> None:
    """Try every stage's tuning on a copy of the model: the last one may begin hours later."""
    used = {name: stage for m in experiment.methods for name, stage in experiment.stages(m)}
    if experiment.source:
        used["pretrain"] = experiment.pretrain
    for name, stage in used.items():
        copied, own = copy.deepcopy(model), field_types(type(stage.tuning))
        with inside(name, ("tuning",)), inside(f"{name}.tuning", own):
            peft.apply(copied, stage.tuning)
        if name != "pretrain" and stage.attack and stage.eps_schedule.switches(stage.epochs):
            logger.warning(
                "%s.eps_schedule goes from clean images to the full radius between two epochs. "
                "From a standard backbone this is known to collapse fine-tuning for good "
                "(arXiv:2509.23325): let the radius rise, with an end later than its start.",
                name,
            )
        with inside(name, ("objective",)):
            attach(copied, stage.objective, 0)
        if name == "pretrain" and experiment.source and "tuning" in copied.card:
            expected = "a method that adds no modules, full say: later stages start from it"
            raise ConfigError(describe("pretrain.tuning", expected, stage.tuning))
        if name in ("finetune", "ft") and not stage.tuning.keeps_function:
            text = "%s.tuning changes the function at once, so the probed head does not fit it; "
            other = "ft" if name == "ft" else "ranli"
            logger.warning(text + "compare with --methods %s.", name, other)
