"""What a sweep keeps beside its cells: the swept values, the state of each cell, shared stages."""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from roli_fast.configuration.files import load_yaml
from roli_fast.errors import RunDirectoryError
from roli_fast.files import naming, read_json, read_text, write_json
from roli_fast.train.config import SCHEMA
from roli_fast.train.experiment import Experiment
from roli_fast.train.run_directory import as_result, read_result, read_test
from roli_fast.train.sweep import Axis, Cell

SWEEP = "sweep.yaml"
"""In the sweep's folder: field -> values as written."""

DIVERGED = "diverged.json"
"""In the folder of a cell whose loss became NaN or infinite: it counts as finished, unchosen."""


def axes_text(axes: Sequence[Axis]) -> str:
    """The swept values as YAML."""
    return yaml.safe_dump({axis.field: list(axis.values) for axis in axes}, sort_keys=False)


def saved_axes(folder: Path) -> tuple[Axis, ...]:
    """The values that the sweep in `folder` began with; none where it is a plain run."""
    path = folder / SWEEP
    if not path.is_file():
        return ()
    with naming(path, RunDirectoryError, "--run_dir", f"a readable {SWEEP}"):
        tree = load_yaml(read_text(path), yaml.SafeLoader)
        axes = tuple(Axis(field, tuple(values)) for field, values in tree.items())
        if not all(isinstance(text, str) for axis in axes for text in (axis.field, *axis.values)):
            raise ValueError("fields and values are texts")
        return axes


def read_validation(where: Path, method: str) -> list[dict[str, Any]] | None:
    """The finished seeds of a cell; None while there is something left to train.

    Raises:
        RunDirectoryError: the file is damaged.
    """
    path = where / "validation.json"
    if not path.is_file():
        return None
    with _again(path):
        return [
            {"seed": run["seed"], "stages": [asdict(as_result(stage)) for stage in run["stages"]]}
            for run in read_json(path)[method]
        ]


def read_diverged(where: Path) -> str | None:
    """Why a cell came to nothing; None if it did not.

    Raises:
        RunDirectoryError: the file is damaged.
    """
    path = where / DIVERGED
    if not path.is_file():
        return None
    with _again(path):
        return str(read_json(path)["error"])


def _again(path: Path) -> AbstractContextManager[None]:
    fix = "Delete it: what its folder has finished is not trained again."
    return naming(path, RunDirectoryError, "--run_dir", "what a sweep wrote of a cell", fix)


def write_diverged(where: Path, error: Exception) -> None:
    """Note why a cell came to nothing."""
    write_json(where / DIVERGED, {"error": str(error)})


def read_outcomes(where: Path, cell: Cell) -> list[dict[str, Any]]:
    """Stages and test of every seed of a tested cell."""
    experiment, method = cell.experiment, cell.method
    runs = read_validation(where, method) or []
    with _again(where / "validation.json"):
        for seed, run in zip(experiment.seeds, runs, strict=True):
            run["test"] = read_test(where / f"seed-{seed}" / method / "test.json", experiment)
    return runs


def read_pretrained(where: Path, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """The results of pretraining on the source; empty without one."""
    paths = [where / f"seed-{seed}" / "pretrain" / "result.json" for seed in seeds]
    return [asdict(read_result(path)) for path in paths if path.is_file()]


class SharedStages:
    """Stages that several cells begin with, pretraining and the probe say, are trained once.

    Results depend on the configuration and the seed alone, so a finished stage of one cell is
    copied to another that would train the very same.
    """

    def __init__(self) -> None:
        self._finished: dict[str, Path] = {}

    def note(self, cell: Cell, where: Path) -> None:
        """Remember what the cell in `where` has finished."""
        for key, part in _first_stages(cell):
            if (where / part / "result.json").is_file():
                self._finished.setdefault(key, where / part)

    def bring(self, cell: Cell, where: Path) -> None:
        """Copy what another cell has finished into `where`."""
        for key, part in _first_stages(cell):
            source, target = self._finished.get(key), where / part
            if source is None or target.exists():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            half = target.with_name(f".{target.name}.copy")  # of a killed sweep, or new
            shutil.rmtree(half, ignore_errors=True)
            shutil.copytree(source, half)
            half.rename(target)  # whole or not at all


def _first_stages(cell: Cell) -> Iterator[tuple[str, Path]]:
    """(what a stage depends on, its folder) of pretraining and of all stages but the last."""
    experiment = cell.experiment
    stages = experiment.stages(cell.method)
    for seed in experiment.seeds:
        common = [seed, *map(SCHEMA.to_tree, _ground(experiment))]
        base = Path(f"seed-{seed}")
        if experiment.source is not None:
            yield json.dumps(common), base / "pretrain"
        for number, (name, _) in enumerate(stages[:-1], 1):
            before = [[n, SCHEMA.to_tree(getattr(experiment, n))] for n, _ in stages[:number]]
            yield json.dumps([*common, before]), base / cell.method / f"stage-{number}-{name}"


def _ground(experiment: Experiment) -> tuple[Any, ...]:
    """What every stage of an experiment depends on, beside itself and the seed."""
    return (
        experiment.data,
        experiment.model,
        experiment.threat,
        experiment.source,
        experiment.pretrain,
        experiment.validation,
        experiment.fresh_head,
        experiment.paper_compat,
    )
