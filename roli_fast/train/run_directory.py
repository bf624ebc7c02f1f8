"""The folder of a run: never overwritten, and enough to resume it, to repeat it, and to rebuild its
models as their stages began and ended."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from roli_fast import peft
from roli_fast.configuration import Schema
from roli_fast.data import ImageDataset, Splits
from roli_fast.data.source import SPLITS
from roli_fast.errors import CheckpointError, RunDirectoryError, describe
from roli_fast.evaluate import UNION
from roli_fast.evaluate.shares import accuracy, to_flags, to_text
from roli_fast.files import naming, read_json, write_json
from roli_fast.models import Classifier, create, init_head, load_backbone, load_head
from roli_fast.running.device import saved_threads
from roli_fast.running.environment import environment, hash_samples, hash_text
from roli_fast.running.folder import open_folder
from roli_fast.running.lock import RunLock
from roli_fast.seeds import derive_seed
from roli_fast.train.experiment import KEEPS_HEAD, PLACE_FIELDS, SCHEMA, Experiment, in_one_part
from roli_fast.train.stage import Stage, StageResult


def open_run_dir(
    folder: Path,
    experiment: Experiment,
    *,
    resume: bool,
    beside: Mapping[str, str] | None = None,
) -> RunLock:
    """`open_folder` with the configuration of an experiment."""
    return open_folder(folder, SCHEMA.to_yaml(experiment), resume=resume, beside=beside)


def stage_folder(run_dir: Path, seed: int, method: str, number: int, name: str) -> Path:
    """Where stage `number`, counted from 1, of a method lies."""
    return run_dir / f"seed-{seed}" / method / f"stage-{number}-{name}"


def pretrain_folder(run_dir: Path, seed: int) -> Path:
    """Where the pretraining on `source` lies."""
    return run_dir / f"seed-{seed}" / "pretrain"


def all_parts(splits: Mapping[str, Splits | None]) -> dict[str, ImageDataset]:
    """Every split by its name: "data train", "data val" and so on."""
    return {
        f"{name} {part}": getattr(found, part)
        for name, found in splits.items()
        for part in (SPLITS if found else ())
    }


def identity(
    experiment: Experiment,
    splits: Mapping[str, Splits | None],
    hashes: Mapping[str, Sequence[str]],
) -> dict[str, str]:
    """Hashes of what a resumed run must find unchanged: the configuration, and every split.

    Args:
        experiment: the run's.
        splits: "data" and "source".
        hashes: of the images' contents, in the order of each split: "data train" and the like.
    """
    tree = SCHEMA.to_tree(in_one_part(experiment))
    tree = {name: value for name, value in tree.items() if name not in PLACE_FIELDS}
    out = {"configuration": hash_text(json.dumps(tree, sort_keys=True))}
    for name, dataset in all_parts(splits).items():
        rows = ((dataset.name(i), y) for i, y in enumerate(dataset.labels.tolist()))
        out[f"{name} images"] = hash_samples(rows)
        out[f"{name} pixels"] = hash_text("\n".join(hashes[name]))
    return out


def saved_environment(folder: Path, found: Mapping[str, str]) -> dict[str, Any]:
    """What an earlier start of this run recorded; empty for a new one.

    Raises:
        RunDirectoryError: the configuration or the images are not those it began with.
    """
    path = folder / "environment.json"
    if not path.is_file():
        return {}
    fix = "Put the file back, or start a new run."
    with naming(path, RunDirectoryError, "run_dir", "what roli_fast.train recorded", fix):
        saved = read_json(path)
        known = saved["identity"]
        changed = [name for name, value in found.items() if known.get(name) != value]
        saved_threads(saved)
    if changed:
        raise RunDirectoryError(
            f"'{folder}' began with another {', another '.join(changed)}, as {path.name} says: its "
            "results would be mixed with others. Put back what changed, perhaps the version of "
            "roli_fast, or start a new run."
        )
    return saved


def write_environment(
    folder: Path, device: torch.device, threads: int, processes: int, found: Mapping[str, str]
) -> None:
    """Record versions, machine, kernels and what was run beside the results."""
    facts = environment(device, threads) | {"processes": processes, "identity": dict(found)}
    write_json(folder / "environment.json", facts)


def read_result(path: Path) -> StageResult:
    """What a finished stage wrote.

    Raises:
        RunDirectoryError: it is damaged; the file and the field are named.
    """
    fix = "Delete the stage's folder to train that stage again."
    with naming(path, RunDirectoryError, "run_dir", "a stage's result", fix):
        return Schema(StageResult, {}).build(read_json(path), [])


def as_test(clean: Tensor, robust: Mapping[str, Tensor]) -> dict[str, Any]:
    """What test.json holds: accuracies, and the flags of every image for paired tests.

    Args:
        clean: flags (N,) of the images that are right.
        robust: column -> flags of those that stay right under its attack; of several the union of
            all is added.
    """
    union = torch.stack([clean, *robust.values()]).all(0)
    columns = {**robust, UNION: union} if len(robust) > 1 else robust
    return {
        "images": len(clean),
        "clean_accuracy": accuracy(clean),
        "robust_accuracy": {name: accuracy(flags) for name, flags in columns.items()},
        "clean_flags": to_text(clean),
        "robust_flags": {name: to_text(flags) for name, flags in columns.items()},
    }


def read_test(path: Path, experiment: Experiment) -> dict[str, Any]:
    """A finished test, whose accuracies are those of its flags.

    Raises:
        RunDirectoryError: it is damaged, or of other attacks.
    """
    with naming(path, RunDirectoryError, "run_dir", "a test's result", "Delete it to test again."):
        tree = read_json(path)
        robust = {
            name: to_flags(tree["robust_flags"][name]) for name in experiment.evaluations("test")
        }
        if as_test(to_flags(tree["clean_flags"]), robust) != tree:
            raise ValueError("accuracies and flags differ")
        return tree


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


def _there(path: Path, where: Path) -> Path:
    if not path.is_file():
        fix = "Finish the run with --resume, or put its files back."
        raise CheckpointError(describe("run_dir", f"a run with {path.name}", f"'{where}'", fix))
    return path
