"""A whole run as one call: anybody's network and data sets in, a robust network out."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import Dataset

from roli_fast.data import DataSource, from_datasets
from roli_fast.errors import ArgumentError, InterruptedRunError, describe
from roli_fast.models import Classifier, Model, hand_in
from roli_fast.peft import Method
from roli_fast.running.folder import CONFIG, dated
from roli_fast.train.experiment import SCHEMA, Experiment
from roli_fast.train.pipeline import run
from roli_fast.train.run_directory import run_stages
from roli_fast.train.summary import table


@dataclass(frozen=True, repr=False)
class Fitted:
    """What `fit` found; printed, or at the end of a notebook's cell, it is the table.

    Args:
        model: the trained classifier in eval mode: images (B, C, H, W) in [0, 1] -> logits. Its
            `backbone` is a network of the class that was given; after LoRA `peft.merge(model)` has
            the plain one.
        classes: the names of the outputs.
        clean_accuracy: share of the test images that are right, in [0, 1].
        robust_accuracy: attack -> share that stays right under it.
        run_dir: weights, configuration, curves, report.html.
        summary: all of it, as in summary.json.
    """

    model: Classifier
    classes: tuple[str, ...]
    clean_accuracy: float
    robust_accuracy: dict[str, float]
    run_dir: Path
    summary: dict[str, Any]

    def __repr__(self) -> str:
        return table(self.summary)


def fit(  # noqa: PLR0913 - what a run is made of, once
    model: nn.Module | Model | str,
    train: Dataset[Any] | DataSource,
    test: Dataset[Any] | None = None,
    *,
    val: Dataset[Any] | None = None,
    method: str = "roli",
    norm: str = "linf",
    eps: float | None = None,
    tuning: Method | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    seed: int = 0,
    device: str = "auto",
    run_dir: str | Path | None = None,
    quiet: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Fitted:
    """The network made robust: the same stages as those of `python -m roli_fast.train`.

    >>> net = models.wrap(torchvision.models.resnet18(weights="DEFAULT"), mean=MEAN, std=STD)
    >>> fitted = roli_fast.fit(net, train, test, eps=4 / 255, epochs=10)

    The module that is given is left as it is. Ctrl-C (a notebook's stop button) saves the position
    and raises; the same call with `run_dir` goes on from there, as after a crash, and `models.load`
    opens the best weights so far, whose file the error names.

    Args:
        model: any network whose images are in [0, 1], one that `models.wrap` normalises for, a
            `models.Model`, or the name of a timm architecture. Its head is replaced by one for the
            classes, unless `method` keeps it ("finetune").
        train: (image, label) samples, see `data.from_datasets`, or a data set of this package.
        test: what the accuracies are of; None cuts it from `train`.
        val: what chooses the best epoch; None cuts it from `train`.
        method: "roli" (adversarial linear probe, then adversarial fine-tuning from that head),
            "ranli", "probe", "lp_ft" and the others of `Experiment`.
        norm: "linf", "l2" or "l1".
        eps: radius in units of [0, 1] images; None is the norm's usual one.
        tuning: what the last stage trains, `peft.LoRA()` say; None is all of it.
        epochs: of each stage but a clean probe, which solves for its head; None is the stages' own.
        batch_size: images an update, in every stage.
        lr: peak learning rate of the last stage.
        seed: of everything random.
        device: "auto", "cpu" or "cuda".
        run_dir: where everything is written; a run that is there already is continued. None makes
            runs/fit-<time>.
        quiet: no progress bars.
        options: any other field by its name on the command line, {"probe.optimizer.lr": 0.01,
            "finetune.attack.steps": 3} say.

    Raises:
        InterruptedRunError: Ctrl-C or SIGTERM; it says where the run is.
        RoliFastError: anything that a user can mend, before anything is trained where possible.
    """
    tree = _described(model, train, test, val, seed) | {"seeds": [seed], "device": device}
    tree |= {"methods": [method], "threat": {"norm": norm, "eps": eps}}
    tree |= _stages(method, tuning, epochs, batch_size, lr)
    flags = [f"--{name}={_text(value)}" for name, value in (options or {}).items()]
    experiment = SCHEMA.build(tree, flags)
    if epochs is not None and experiment.ranli is None:  # null would take those of both stages
        experiment = replace(experiment, ranli=experiment.finetune)
    folder = Path(run_dir) if run_dir else dated("runs", "fit")
    try:
        summary = run(experiment, folder, resume=(folder / CONFIG).is_file(), quiet=quiet)
    except InterruptedRunError as error:
        text = f"{error}; saved. Go on with the same call and run_dir='{folder}'."
        raise InterruptedRunError(text, *error.args[1:]) from error
    return _fitted(experiment, folder, summary)


def _stages(
    method: str, tuning: Method | None, epochs: int | None, batch_size: int | None, lr: float | None
) -> dict[str, Any]:
    """The stages' fields that are given, as a configuration has them."""
    if method in ("probe", "lp") and (tuning is not None or lr is not None):
        fix = "Its rate is options={'probe.optimizer.lr': ...}."
        expected = f"None for the method {method}, which trains the head alone"
        raise ArgumentError(describe("tuning and lr", expected, f"{tuning}, {lr}", fix))
    batches = {} if batch_size is None else {"batch_size": batch_size}
    whole = batches | ({} if epochs is None else {"epochs": epochs})
    last = whole | ({} if tuning is None else {"tuning": SCHEMA.to_tree(tuning)})
    last |= {} if lr is None else {"optimizer": {"lr": lr}}
    return {"probe": whole, "lp": batches, "pretrain" if method == "scratch" else "finetune": last}


def _fitted(experiment: Experiment, folder: Path, summary: dict[str, Any]) -> Fitted:
    """The model of a run of one method and one seed."""
    (method,), (seed,), splits = experiment.methods, experiment.seeds, experiment.data.load()
    model = run_stages(experiment, splits, folder, seed, method)[-1].trained_model().eval()
    model.card["classes"] = list(splits.classes)
    test = summary["methods"][method]["test"]
    accuracies = test["clean_accuracy"], test["robust_accuracy"]
    return Fitted(model, splits.classes, *accuracies, folder, summary)


def _described(
    model: nn.Module | Model | str,
    train: Dataset[Any] | DataSource,
    test: Dataset[Any] | None,
    val: Dataset[Any] | None,
    seed: int,
) -> dict[str, Any]:
    """Model and data as a configuration has them."""
    config = Model(model) if isinstance(model, str) else model
    config = config if isinstance(config, Model) else hand_in(config)
    if not isinstance(train, DataSource):
        channels = len(config.mean) if config.mean else config.options.get("in_chans", 3)
        train = from_datasets(train, test, val, channels=channels, seed=seed)
    elif test is not None or val is not None:
        fix = "It brings its own splits."
        raise ArgumentError(describe("test and val", "None beside a data source", "some", fix))
    return {"data": SCHEMA.to_tree(train), "model": SCHEMA.to_tree(config)}


def _text(value: Any) -> str:
    """A value as the command line has it."""
    if value is None:
        return "null"
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
