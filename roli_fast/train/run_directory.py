"""The folder of a run: never overwritten, and enough to resume it, to repeat it, and to rebuild its
models as their stages began and ended."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
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


@dataclass(frozen=True)
class RunStage:
    """One stage of a method and seed of a run: where it lies, its model as it began and ended.

    Args:
        experiment: the run's.
        splits: of its data; the number of classes and the size of the images are taken from them.
        run_dir: the run's folder.
        seed: one of its seeds.
        method: one of its methods; "source" is the pretraining, with the splits of `source`.
        number: which stage of the method, counted from 1, as in the names of the folders.
    """

    experiment: Experiment
    splits: Splits = field(repr=False)
    run_dir: Path
    seed: int
    method: str
    number: int = 1

    @property
    def name(self) -> str:
        """The stage's, "probe" say."""
        return self._named[0]

    @property
    def stage(self) -> Stage:
        """Its configuration as it runs."""
        return self._named[1]

    @property
    def _named(self) -> tuple[str, Stage]:
        if self.method == "source":
            return "pretrain", self.experiment.pretrain
        return self.experiment.stages(self.method)[self.number - 1]

    @property
    def folder(self) -> Path:
        """Where its files are."""
        base = self.run_dir / f"seed-{self.seed}"
        if self.method == "source":
            return base / "pretrain"
        return base / self.method / f"stage-{self.number}-{self.name}"

    @property
    def stage_id(self) -> dict[str, str | int]:
        """What names its records."""
        return {"seed": self.seed, "method": self.method, "stage": self.name}

    @property
    def finished(self) -> bool:
        """Whether its result is there."""
        return (self.folder / "result.json").is_file()

    def result(self) -> StageResult:
        """What it reported when it was finished.

        Raises:
            RunDirectoryError: it is damaged; the file and the field are named.
        """
        return read_result(self.folder / "result.json")

    def untuned_model(self) -> Classifier:
        """What the stage is given, before its tuning, on the CPU: the pretrained backbone with a
        fresh head, its own, or that of the stage before. Everything before it is finished.

        Raises:
            CheckpointError: a file of the run is missing or damaged, or the weights that it started
                from have moved.
        """
        experiment, config = self.experiment, self.experiment.model
        if self.method == "scratch":
            config = replace(config, weights=None, pretrained=False)
        elif experiment.source and self.method != "source":
            weights = _there(replace(self, method="source").folder / "best.safetensors")
            config = replace(config, weights=str(weights), pretrained=False)
        model = create(
            config,
            num_classes=self.splits.num_classes,
            seed=derive_seed(self.seed, "init"),
            image_size=self.splits.train.image_size,
            with_head=self.method == KEEPS_HEAD,
        )
        if self.method != KEEPS_HEAD:
            init_head(model, experiment.fresh_head, seed=self.seed)
        if self.number > 1:
            before = replace(self, number=self.number - 1)
            load_head(model, _there(before.folder / "head.safetensors"))
        return model

    def starting_model(self) -> Classifier:
        """The model exactly as the stage began: its backbone and head, what its tuning inserts, and
        its `head_scale`. Only what the tuning trains requires grad. Errors as `untuned_model`."""
        model = self.untuned_model()
        self.stage.prepare(model, seed=self.seed)
        return model

    def trained_model(self) -> Classifier:
        """The model as the stage left it, with its selected weights ("best.safetensors"); all
        parameters require grad. Errors as `untuned_model`."""
        return self.finish(self.untuned_model())

    def finish(self, model: Classifier) -> Classifier:
        """Bring `untuned_model`, in place, to where the finished stage left it."""
        peft.apply(model, self.stage.tuning, seed=self.seed)  # what it inserted is in the file
        load_backbone(model, _there(self.folder / "best.safetensors"), with_head=True)
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        return model


def run_stages(
    experiment: Experiment, splits: Splits, run_dir: Path, seed: int, method: str
) -> list[RunStage]:
    """All stages of a method, in their order."""
    count = len(experiment.stages(method))
    return [RunStage(experiment, splits, run_dir, seed, method, n + 1) for n in range(count)]


def _there(path: Path) -> Path:
    if not path.is_file():
        fix = "Finish the run with --resume, or put its files back."
        got = f"'{path.parent}'"
        raise CheckpointError(describe("run_dir", f"a run with {path.name}", got, fix))
    return path
