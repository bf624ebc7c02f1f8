"""The models of a run as their stages began and ended, rebuilt from its folder."""

from dataclasses import replace
from pathlib import Path

from roli_fast import peft
from roli_fast.data import Splits
from roli_fast.errors import CheckpointError, describe
from roli_fast.models import Classifier, create, init_head, load_backbone, load_head
from roli_fast.seeds import derive_seed
from roli_fast.train.experiment import KEEPS_HEAD, Experiment
from roli_fast.train.stage import Stage


def starting_model(
    experiment: Experiment, splits: Splits, seed: int, method: str, number: int, run_dir: Path
) -> Classifier:
    """The model exactly as a stage began: its backbone and head, what its tuning inserts, and its
    `head_scale`. Only what the tuning trains requires grad.

    Args:
        experiment: the run's.
        splits: of its data; the number of classes and the size of the images are taken from them.
        seed: one of its seeds.
        method: one of its methods.
        number: which stage of the method, counted from 1, as in the names of the stages' folders.
        run_dir: the run's folder, in which everything before that stage is finished.

    Returns:
        The model on the CPU.

    Raises:
        CheckpointError: a file of the run is missing or damaged, or the weights that it started
            from have moved.
    """
    model = untuned_model(experiment, splits, seed, method, number, run_dir)
    experiment.stages(method)[number - 1][1].prepare(model, seed=seed)
    return model


def trained_model(
    experiment: Experiment, splits: Splits, seed: int, method: str, number: int, run_dir: Path
) -> Classifier:
    """The model as a stage left it, with its selected weights ("best.safetensors"); all of its
    parameters require grad.

    Arguments and errors as for `starting_model`.
    """
    model = untuned_model(experiment, splits, seed, method, number, run_dir)
    name, stage = experiment.stages(method)[number - 1]
    finish(model, stage, stage_folder(run_dir, seed, method, number, name), seed=seed)
    return model


def untuned_model(
    experiment: Experiment, splits: Splits, seed: int, method: str, number: int, run_dir: Path
) -> Classifier:
    """What a stage is given, before its tuning: the pretrained backbone with a fresh head, its own,
    or that of the stage before.

    Arguments and errors as for `starting_model`.
    """
    weights: Path | None = None
    if experiment.source:
        weights = _there(pretrain_folder(run_dir, seed) / "best.safetensors", run_dir)
    model = fresh_model(experiment, splits, seed, method=method, weights=weights)
    if number > 1:
        name, _ = experiment.stages(method)[number - 2]
        before = stage_folder(run_dir, seed, method, number - 1, name)
        load_head(model, _there(before / "head.safetensors", run_dir))
    return model


def fresh_model(
    experiment: Experiment,
    splits: Splits,
    seed: int,
    *,
    method: str = "",
    weights: Path | None = None,
) -> Classifier:
    """What the first stage of a method is given, or with none that of pretraining.

    Args:
        experiment: the run's.
        splits: of the images that it is for.
        seed: one of the run's seeds.
        method: one of its methods; "scratch" takes no pretrained weights.
        weights: those that the run itself pretrained; None takes `experiment.model`'s.
    """
    config, keeps_head = experiment.model, method == KEEPS_HEAD
    if method == "scratch":
        config = replace(config, weights=None, pretrained=False)
    elif weights:
        config = replace(config, weights=str(weights), pretrained=False)
    model = create(
        config,
        num_classes=splits.num_classes,
        seed=derive_seed(seed, "init"),
        image_size=splits.train.image_size,
        with_head=keeps_head,
    )
    if not keeps_head:
        init_head(model, experiment.fresh_head, seed=seed)
    return model


def finish(model: Classifier, stage: Stage, folder: Path, *, seed: int) -> None:
    """Bring `untuned_model` to where the finished `stage` in `folder` left it."""
    peft.apply(model, stage.tuning, seed=seed)  # what it inserted is in the file
    load_backbone(model, _there(folder / "best.safetensors", folder), with_head=True)
    for parameter in model.parameters():
        parameter.requires_grad_(True)


def stage_folder(run_dir: Path, seed: int, method: str, number: int, name: str) -> Path:
    """Where stage `number`, counted from 1, of a method lies."""
    return run_dir / f"seed-{seed}" / method / f"stage-{number}-{name}"


def pretrain_folder(run_dir: Path, seed: int) -> Path:
    """Where the pretraining on `source` lies."""
    return run_dir / f"seed-{seed}" / "pretrain"


def _there(path: Path, where: Path) -> Path:
    if not path.is_file():
        fix = "Finish the run with --resume, or put its files back."
        raise CheckpointError(describe("run_dir", f"a run with {path.name}", f"'{where}'", fix))
    return path
