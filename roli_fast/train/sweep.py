"""Sweeps: every combination of the values given, method by method; each a run directory. Cells are
chosen on validation, and what is chosen is tested.
"""

import json
import logging
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from roli_fast.configuration.files import load_yaml
from roli_fast.data import DataSource
from roli_fast.errors import (
    ConfigError,
    NonFiniteLossError,
    RoliFastError,
    RunDirectoryError,
    describe,
)
from roli_fast.files import naming, read_json, read_text, write_json
from roli_fast.running.text import align
from roli_fast.train.checks import check
from roli_fast.train.experiment import PLACE_FIELDS, SCHEMA, STAGES, Experiment, same_experiment
from roli_fast.train.pipeline import run
from roli_fast.train.postprocess import report_or_warn
from roli_fast.train.run_directory import (
    as_result,
    identity,
    open_run_dir,
    read_result,
    read_test,
    saved_environment,
)
from roli_fast.train.summary import percent, summarise

ALIKE = ("methods", "seeds", "threat", "validation", "test")
"""Fields that cells must share: else they would be chosen and compared by different measures."""


@dataclass(frozen=True)
class Axis:
    """One swept field and its values, as they are written on the command line."""

    field: str
    values: tuple[str, ...]

    @staticmethod
    def parse(text: str) -> "Axis":
        """Read FIELD=A,B or FIELD=[A,B].

        Raises:
            ConfigError: no values, an unknown field, or a value given twice.
        """
        field, equals, values = text.partition("=")
        field = field.strip().removeprefix("--")
        inner = values.strip()
        if _split(inner) == [inner] and inner.startswith("[") and inner.endswith("]"):
            inner = inner[1:-1]
        found = tuple(part.strip() for part in _split(inner))
        if not equals or not field or not all(found):
            fix = "Write --sweep finetune.optimizer.lr=1e-3,1e-4"
            raise ConfigError(describe("--sweep", "FIELD=VALUE,VALUE,...", repr(text), fix))
        field = SCHEMA.full_name(field)
        if field in PLACE_FIELDS:
            got, fix = repr(text), "All its values would train the same."
            raise ConfigError(describe("--sweep", "a field that changes what is trained", got, fix))
        if len(set(found)) < len(found):
            raise ConfigError(describe("--sweep", f"different values of {field}", repr(text)))
        return Axis(field, found)


def _split(text: str) -> list[str]:
    """At the commas outside of brackets."""
    parts, depth, start = [], 0, 0
    for place, letter in enumerate(text):
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth == 0:
            parts.append(text[start:place])
            start = place + 1
    return [*parts, text[start:]]


@dataclass(frozen=True)
class Cell:
    """One run of a sweep: one method with one choice of the values that concern it."""

    method: str
    choice: tuple[tuple[str, str], ...]
    experiment: Experiment

    @property
    def label(self) -> str:
        """ "finetune.optimizer.lr=1e-3"; "as configured" where no swept field concerns it."""
        return " ".join(f"{field}={value}" for field, value in self.choice) or "as configured"

    @property
    def folder(self) -> str:
        """Its run directory, below that of the sweep."""
        name = re.sub(r"[^\w.=+-]+", "_", "_".join(f"{f}={v}" for f, v in self.choice))
        return f"{self.method}/{name or 'as-configured'}"


def cells(base: Experiment, axes: Sequence[Axis]) -> list[Cell]:
    """The runs of a sweep, grouped by method. What does not concern a method is not run twice.

    Raises:
        ConfigError: a value that a field refuses, two equal cells, or cells that could not be
            compared.
    """
    fields = [axis.field for axis in axes]
    if len(set(fields)) < len(fields):
        fix = "Give all values of a field at once."
        raise ConfigError(describe("--sweep", "each field once", ", ".join(fields), fix))
    tree = SCHEMA.to_tree(base)
    found = [
        (tuple(zip(fields, values, strict=True)), _build(tree, fields, values))
        for values in product(*(axis.values for axis in axes))
    ]
    _check(base, found)
    out = [cell for method in base.methods for cell in _of_method(method, found)]
    names = [cell.folder for cell in out]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ConfigError(describe("--sweep", "values that differ as folder names", twice))
    return out


Found = Sequence[tuple[tuple[tuple[str, str], ...], Experiment]]


def _build(tree: Mapping[str, Any], fields: Sequence[str], values: Sequence[str]) -> Experiment:
    flags = [f"--{field}={value}" for field, value in zip(fields, values, strict=True)]
    try:
        return SCHEMA.build(dict(tree), flags)
    except RoliFastError as error:
        raise ConfigError(f"`--sweep`, {' '.join(flags)}: {error}") from error


def _check(base: Experiment, found: Found) -> None:
    for name in ALIKE:
        if any(getattr(experiment, name) != getattr(base, name) for _, experiment in found):
            fix = "Cells are chosen and compared by one measure: start a sweep for each value."
            raise ConfigError(describe("--sweep", f"fields other than {name}", name, fix))
    if any(replace(e.data, augment=base.data.augment) != base.data for _, e in found):
        fix = "Cells are chosen on the same validation images: start a sweep for each value."
        raise ConfigError(describe("--sweep", "of data nothing but data.augment", "data", fix))
    for (first, a), (second, b) in combinations(found, 2):
        if a == b:
            raise ConfigError(
                describe("--sweep", "different cells", f"{_text(first)} and {_text(second)} alike")
            )
    for method in base.methods:
        clean = {experiment.stages(method)[-1][1].attack is None for _, experiment in found}
        if len(clean) > 1:
            fix = "Clean and robust validation accuracy cannot be compared."
            raise ConfigError(
                describe("--sweep", f"cells of {method} that all attack, or none", "both", fix)
            )


def _text(choice: Iterable[tuple[str, str]]) -> str:
    return " ".join(f"{field}={value}" for field, value in choice)


def _of_method(method: str, found: Found) -> list[Cell]:
    """One cell for each experiment that differs in what `method` reads."""
    groups: list[tuple[Experiment, list[tuple[tuple[str, str], ...]], Experiment]] = []
    for choice, experiment in found:
        own = _as_read(method, experiment)
        for key, choices, _ in groups:
            if key == own:
                choices.append(choice)
                break
        else:
            groups.append((own, [choice], replace(experiment, methods=(method,))))
    return [Cell(method, _common(choices), experiment) for _, choices, experiment in groups]


def _as_read(method: str, experiment: Experiment) -> Experiment:
    """The experiment with the stages that `method` does not read left at their defaults."""
    read = experiment.read_stages(method)
    if experiment.source is not None:
        read |= {"pretrain"}
    plain = Experiment(data=experiment.data)
    unread = {name: getattr(plain, name) for name in STAGES if name not in read}
    return replace(experiment, methods=(method,), **unread)


def _common(choices: Sequence[tuple[tuple[str, str], ...]]) -> tuple[tuple[str, str], ...]:
    """The choices that all combinations of one group share."""
    return tuple(pair for pair in choices[0] if all(pair in choice for choice in choices))


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


logger = logging.getLogger(__name__)


def run_sweep(
    base: Experiment,
    axes: Sequence[Axis],
    folder: Path,
    *,
    resume: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Run a sweep in `folder`, or go on with it there.

    Every cell is a run directory below it. A cell is chosen for each method by its validation
    accuracy (robust where its last stage attacks, of several norms that of their union), the mean
    over seeds; the test split is looked at for the chosen cells alone.

    Args:
        base: the experiment whose fields the cells change.
        axes: the swept fields and their values.
        folder: a new or empty folder, or with `resume` one that an earlier call left.
        resume: go on from there; finished cells are not run again.
        quiet: no progress bars.

    Returns:
        What summary.json holds: that of a run, with "sweep": the cells and which were chosen.

    Raises:
        ConfigError: the cells cannot be built or compared.
        NonFiniteLossError: every cell of a method came to NaN.
        RoliFastError: as `run` says.
    """
    plan = cells(base, axes)
    _check_all(plan, folder, quiet=quiet)
    # without its axes a killed sweep would be resumed as a plain run
    with open_run_dir(folder, base, resume=resume, beside={SWEEP: axes_text(axes)}):
        rows = _train(plan, folder, quiet=quiet)
        outcomes: dict[str, list[dict[str, Any]]] = {}
        pretrained: list[dict[str, Any]] = []
        for method in base.methods:
            cell = _choose(method, plan, rows)
            where = folder / cell.folder
            run(cell.experiment, where, resume=True, quiet=quiet)
            outcomes[method] = read_outcomes(where, cell)
            pretrained = pretrained or read_pretrained(where, base.seeds)
        summary = summarise(base, base.data.load(), outcomes, pretrained)
        summary["sweep"] = {"axes": {a.field: list(a.values) for a in axes}, "cells": rows}
        write_json(folder / "summary.json", summary)
        if base.report:
            report_or_warn(folder)
        return summary


def _check_all(plan: Sequence[Cell], folder: Path, *, quiet: bool) -> None:
    """A mistake in the last cell is told before the first one trains, and that the images are not
    those with which finished cells were trained."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # each run says the same again
    seen: dict[tuple[DataSource, DataSource | None], dict[str, str]] = {}
    try:
        for cell in plan:
            experiment, where = cell.experiment, folder / cell.folder
            images = (experiment.data, experiment.source)
            new, finished = images not in seen, _finished(where, cell)
            if new or not finished:
                ready = check(experiment, begun=where, look=new, quiet=quiet)
                if new:
                    found = identity(experiment, ready.splits, ready.hashes)
                    seen[images] = {n: found[n] for n in found if n != "configuration"}
            if finished:
                saved_environment(where, seen[images])
    finally:
        logging.disable(before)


def _finished(where: Path, cell: Cell) -> bool:
    """Whether a cell needs no more training.

    Raises:
        RunDirectoryError: its folder holds another experiment.
    """
    done = read_validation(where, cell.method) is not None or read_diverged(where) is not None
    if not done:
        return False
    if not same_experiment(SCHEMA.read(where / "config.yaml"), cell.experiment):
        raise RunDirectoryError(
            f"'{where}' holds another experiment than this sweep's. Name a new --run_dir."
        )
    return True


def _train(plan: Sequence[Cell], folder: Path, *, quiet: bool) -> list[dict[str, Any]]:
    """Train what is left, in order; one row a cell."""
    shared = SharedStages()
    rows: list[dict[str, Any]] = []
    for number, cell in enumerate(plan, 1):
        where = folder / cell.folder
        earlier = _finished(where, cell)
        if not earlier:
            _train_cell(cell, where, shared, quiet=quiet)
        shared.note(cell, where)
        rows.append(_row(cell, where))
        result = _score(rows[-1]) + (" (finished earlier)" if earlier else "")
        logger.info("cell %d/%d %s %s: %s", number, len(plan), cell.method, cell.label, result)
    return rows


def _train_cell(cell: Cell, where: Path, shared: SharedStages, *, quiet: bool) -> None:
    if not (where / "config.yaml").is_file():
        open_run_dir(where, cell.experiment, resume=False).release()
    shared.bring(cell, where)
    try:
        run(cell.experiment, where, resume=True, quiet=quiet, test=False)
    except NonFiniteLossError as error:  # a rate that is too high is an answer, not an accident
        logger.warning("%s %s: %s", cell.method, cell.label, error)
        write_diverged(where, error)


def _row(cell: Cell, where: Path) -> dict[str, Any]:
    """What the summary says of a cell; accuracies are fractions, one a seed."""
    runs = read_validation(where, cell.method) or []
    scores = [run["stages"][-1]["best_validation_accuracy"] for run in runs]
    return {
        "method": cell.method,
        "cell": cell.label,
        "values": dict(cell.choice),
        "folder": cell.folder,
        "validation_accuracy": float(np.mean(scores)) if scores else None,
        "sd": float(np.std(scores, ddof=1)) if len(scores) > 1 else None,
        "per_seed": scores,
        "diverged": read_diverged(where),
        "chosen": False,
    }


def _choose(method: str, plan: Sequence[Cell], rows: Sequence[dict[str, Any]]) -> Cell:
    """The cell of highest mean validation accuracy, the first of equals; marks its row."""
    own = [
        (row["validation_accuracy"], -number)
        for number, row in enumerate(rows)
        if row["method"] == method and row["validation_accuracy"] is not None
    ]
    if not own:
        raise NonFiniteLossError(
            f"every cell of {method} came to a NaN or infinite loss. Sweep lower rates."
        )
    number = -max(own)[1]
    rows[number]["chosen"] = True
    return plan[number]


def _score(row: dict[str, Any]) -> str:
    if row["validation_accuracy"] is None:
        return "diverged"
    if row["sd"] is None:
        return f"{100 * row['validation_accuracy']:.1f} %"
    return percent(row["validation_accuracy"], row["sd"])


def sweep_table(summary: dict[str, Any]) -> str:
    """The cells as text: validation accuracies, and which was chosen."""
    header = ["method", "cell", "validation", ""]
    rows = [
        [row["method"], row["cell"], _score(row), "chosen" if row["chosen"] else ""]
        for row in summary["sweep"]["cells"]
    ]
    spread = "; +- is the sd over seeds" if len(summary["seeds"]) > 1 else ""
    return "\n".join(
        [*align([header, *rows]), "", f"Chosen by validation accuracy{spread}. Test:", ""]
    )
