"""The folder of a run: never overwritten, and enough to resume and to repeat it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from roli_fast.configuration import Schema
from roli_fast.data import Splits
from roli_fast.errors import RunDirectoryError
from roli_fast.evaluate import UNION
from roli_fast.evaluate.shares import accuracy, to_flags
from roli_fast.files import naming, read_json, write_json
from roli_fast.running.device import saved_threads
from roli_fast.running.environment import environment, hash_samples, hash_text
from roli_fast.running.folder import open_folder
from roli_fast.running.lock import RunLock
from roli_fast.train.experiment import PLACE_FIELDS, SCHEMA, Experiment, default_lp, in_one_part
from roli_fast.train.images import all_parts
from roli_fast.train.stage import StageResult

LATER: dict[str, Any] = {
    "other_norms": [],
    "other_eps": [],
    "gradient_projection": None,
    "schedule": {"name": "cosine"},
    "select": "best",
    "decay": "matrices",
    "head_scale": 1.0,
    "strengths": [],
    "iterations": 500,
    "channels": 3,
    "lp": SCHEMA.to_tree(default_lp()),
    "ft": None,
}
"""Fields that runs begun before they existed lack, and the values that mean the same as lacking."""

TEST = {"images": int, "clean_accuracy": float, "robust_accuracy": dict, "robust_flags": dict}
"""Fields of test.json that must fit one another."""


def open_run_dir(
    folder: Path,
    experiment: Experiment,
    *,
    resume: bool,
    beside: Mapping[str, str] | None = None,
) -> RunLock:
    """`open_folder` with the configuration of an experiment."""
    return open_folder(folder, SCHEMA.to_yaml(experiment), resume=resume, beside=beside)


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
    tree = _as_before({k: v for k, v in tree.items() if k not in PLACE_FIELDS})
    out = {"configuration": hash_text(json.dumps(tree, sort_keys=True))}
    for name, dataset in all_parts(splits).items():
        rows = ((dataset.name(i), y) for i, y in enumerate(dataset.labels.tolist()))
        out[f"{name} images"] = hash_samples(rows)
        out[f"{name} pixels"] = hash_text("\n".join(hashes[name]))
    return out


def _as_before(tree: Any) -> Any:
    """A configuration without the `LATER` fields that change nothing: its hash is what it was."""
    if not isinstance(tree, dict):
        return tree
    kept = {k: v for k, v in tree.items() if k not in LATER or v != LATER[k]}
    return {name: _as_before(value) for name, value in kept.items()}


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
        # runs that began before pixels were recorded are known by names and labels
        changed = [name for name in changed if name in known or not name.endswith(" pixels")]
        saved_threads(saved)
    if changed:
        raise RunDirectoryError(
            f"'{folder}' began with another {', another '.join(changed)}, as {path.name} says: its "
            "results would be mixed with others. Put back what changed, perhaps the version of "
            "roli_fast, or start a new run."
        )
    return saved


def read_result(path: Path) -> StageResult:
    """What a finished stage wrote.

    Raises:
        RunDirectoryError: it is damaged; the file and the field are named.
    """
    fix = "Delete the stage's folder to train that stage again."
    with naming(path, RunDirectoryError, "run_dir", "a stage's result", fix):
        return as_result(read_json(path))


def as_result(tree: Any) -> StageResult:
    """A stage's result from its plain values. Raises ConfigError for a wrong field."""
    return Schema(StageResult, {}).build(tree, [])


def read_test(path: Path, experiment: Experiment) -> dict[str, Any]:
    """A finished test, whose accuracies are those of its flags.

    Raises:
        RunDirectoryError: it is damaged; the file and the field are named.
    """
    with naming(path, RunDirectoryError, "run_dir", "a test's result", "Delete it to test again."):
        tree = read_json(path)
        for name, kind in TEST.items():
            if not isinstance(tree[name], kind):
                raise ValueError(f"{name}: got {tree[name]!r}")
        expected = set(experiment.evaluations("test"))
        expected |= {UNION} if len(expected) > 1 else set()
        shares, flags = tree["robust_accuracy"], tree["robust_flags"]
        if not shares.keys() == flags.keys() == expected:
            raise ValueError(f"it is of {sorted(shares)}, expected {sorted(expected)}")
        texts = {"clean": tree["clean_flags"], **flags}
        for name, share in {"clean": tree["clean_accuracy"], **shares}.items():
            found = to_flags(texts[name])
            if len(found) != tree["images"] or abs(accuracy(found) - share) > 1e-6:
                raise ValueError(f"accuracy and flags of {name} differ")
        return tree


def write_environment(
    folder: Path, device: torch.device, threads: int, processes: int, found: Mapping[str, str]
) -> None:
    """Record versions, machine, kernels and what was run beside the results."""
    facts = environment(device, threads) | {"processes": processes, "identity": dict(found)}
    write_json(folder / "environment.json", facts)
