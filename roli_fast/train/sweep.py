"""Sweeps: every combination of the values given, method by method; each a run directory. Cells are
chosen on validation, and what is chosen is tested.
"""

import json
import logging
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from roli_fast.configuration.files import load_yaml
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
from roli_fast.train.experiment import SCHEMA, STAGES, Experiment
from roli_fast.train.pipeline import report_or_warn, run
from roli_fast.train.run_directory import open_run_dir, read_result, read_test
from roli_fast.train.summary import percent, summarise

logger = logging.getLogger(__name__)

ALIKE = ("methods", "seeds", "threat", "validation", "test")
"""Fields that cells must share: else they would be chosen and compared by different measures."""

GROUND = ("data", "model", "threat", "source", "pretrain", "validation", "fresh_head")
GROUND += ("paper_compat",)
"""What the weights of a stage depend on, beside the stages up to it."""

SWEEP = "sweep.yaml"
"""In the sweep's folder: field -> values, as written on the command line."""

DIVERGED = "diverged.json"
"""In the folder of a cell whose loss became NaN or infinite: it counts as finished, unchosen."""

Choice = tuple[tuple[str, str], ...]
"""(field, value as written) of the swept fields."""


@dataclass(frozen=True)
class Axis:
    """One swept field and its values, as they are written on the command line."""

    field: str
    values: tuple[str, ...]

    @staticmethod
    def parse(text: str) -> "Axis":
        """Read FIELD=A,B or FIELD=[A,B]; commas within brackets separate nothing.

        Raises:
            ConfigError: no values, or an unknown field.
        """
        field, _, values = text.partition("=")
        field, inner = field.strip().removeprefix("--"), values.strip()
        if _split(inner) == [inner] and inner.startswith("[") and inner.endswith("]"):
            inner = inner[1:-1]
        found = tuple(_split(inner))
        if not field or not all(found):
            fix = "Write --sweep finetune.optimizer.lr=1e-3,1e-4"
            raise ConfigError(describe("--sweep", "FIELD=VALUE,VALUE,...", repr(text), fix))
        return Axis(SCHEMA.full_name(field), found)


def _split(text: str) -> list[str]:
    """The parts between the commas outside of brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def saved_axes(folder: Path) -> tuple[Axis, ...]:
    """The values that the sweep in `folder` began with; none where it is a plain run."""
    path = folder / SWEEP
    if not path.is_file():
        return ()
    with naming(path, RunDirectoryError, "--run_dir", f"a readable {SWEEP}"):
        tree = load_yaml(read_text(path), yaml.SafeLoader)
        return tuple(Axis.parse(f"{field}={values}") for field, values in tree.items())


@dataclass(frozen=True)
class Cell:
    """One run of a sweep: one method with one choice of the values that concern it."""

    method: str
    choice: Choice
    experiment: Experiment

    @property
    def label(self) -> str:
        """ "finetune.optimizer.lr=1e-3"; "as configured" where no swept field concerns it."""
        return " ".join(f"{field}={value}" for field, value in self.choice) or "as configured"

    @property
    def folder(self) -> str:
        """Its run directory, below that of the sweep."""
        name = re.sub(r"[^\w.=+-]+", "_" if self.choice else "-", self.label)
        return f"{self.method}/{name}"

    def shared_stages(self) -> Iterator[tuple[str, Path]]:
        """(what it depends on, its folder) of pretraining and of all stages but the last: cells
        that begin alike train them once."""
        stages = self.experiment.stages(self.method)
        for seed in self.experiment.seeds:
            known = [seed, *(SCHEMA.to_tree(getattr(self.experiment, name)) for name in GROUND)]
            if self.experiment.source is not None:
                yield json.dumps(known), Path(f"seed-{seed}", "pretrain")
            for number, (name, stage) in enumerate(stages[:-1], 1):
                known += [[name, SCHEMA.to_tree(stage)]]
                yield json.dumps(known), Path(f"seed-{seed}", self.method, f"stage-{number}-{name}")


def cells(base: Experiment, axes: Sequence[Axis]) -> list[Cell]:
    """The runs of a sweep, grouped by method: one for each choice of the fields that the method
    reads, for it is not run twice by the value of a stage that it does not have.

    Raises:
        ConfigError: a value that a field refuses, or cells that could not be compared.
    """
    fields = [axis.field for axis in axes]
    if len(set(fields)) < len(fields):
        fix = "Give all values of a field at once."
        raise ConfigError(describe("--sweep", "each field once", ", ".join(fields), fix))
    tree, found = SCHEMA.to_tree(base), dict[tuple[str, Choice], Experiment]()
    for values in product(*(axis.values for axis in axes)):
        choice = tuple(zip(fields, values, strict=True))
        flags = [f"--{field}={value}" for field, value in choice]
        try:
            experiment = SCHEMA.build(tree, flags)
        except RoliFastError as error:
            raise ConfigError(f"`--sweep`, {' '.join(flags)}: {error}") from error
        _check_alike(base, experiment)
        for method in base.methods:
            read = experiment.read_stages(method) | ({"pretrain"} if experiment.source else set())
            own = tuple(pair for pair in choice if pair[0].split(".")[0] not in {*STAGES} - read)
            found.setdefault((method, own), replace(experiment, methods=(method,)))
    out = [Cell(*key, experiment) for key, experiment in found.items()]
    return sorted(out, key=lambda cell: base.methods.index(cell.method))


def _check_alike(base: Experiment, experiment: Experiment) -> None:
    """One measure, and one set of validation images, for all cells."""
    fix = "Start a sweep for each value."
    for name in ALIKE:
        if getattr(experiment, name) != getattr(base, name):
            raise ConfigError(describe("--sweep", f"fields other than {name}", name, fix))
    if replace(experiment.data, augment=base.data.augment) != base.data:
        raise ConfigError(describe("--sweep", "of data nothing but data.augment", "data", fix))
    for method in base.methods:
        last = [own.stages(method)[-1][1].attack is None for own in (base, experiment)]
        if last[0] != last[1]:
            expected, fix = f"cells of {method} that all attack, or none", "Sweep them apart."
            raise ConfigError(describe("--sweep", expected, "clean and robust validation", fix))


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
        resume: go on from there; finished stages are not trained again.
        quiet: no progress bars.

    Returns:
        What summary.json holds: that of a run, with "sweep": the cells and which were chosen.

    Raises:
        ConfigError: the cells cannot be built or compared.
        NonFiniteLossError: every cell of a method came to NaN.
        RoliFastError: as `run` says.
    """
    plan, before = cells(base, axes), logging.root.manager.disable
    logging.disable(logging.WARNING)  # each run says the same again
    try:
        for cell in plan:  # a mistake in the last one is told before the first one trains
            check(cell.experiment, look=False)
    finally:
        logging.disable(before)
    swept = yaml.safe_dump({axis.field: ",".join(axis.values) for axis in axes}, sort_keys=False)
    # without its axes a killed sweep would be resumed as a plain run
    with open_run_dir(folder, base, resume=resume, beside={SWEEP: swept}):
        shared: dict[str, Path] = {}
        rows = []
        for number, cell in enumerate(plan, 1):
            logger.info("cell %d of %d: %s %s", number, len(plan), cell.method, cell.label)
            rows.append(_train(cell, folder, shared, quiet=quiet))
            logger.info("%s %s: validation %s", cell.method, cell.label, _score(rows[-1]))
        outcomes: dict[str, list[dict[str, Any]]] = {}
        where = folder
        for method in base.methods:
            number = _choose(method, rows)
            cell, where = plan[number], folder / plan[number].folder
            tested = run(cell.experiment, where, resume=True, quiet=quiet)["methods"][method]
            outcomes[method] = tested["per_seed"]
            for outcome in outcomes[method]:
                path = where / f"seed-{outcome['seed']}" / method / "test.json"
                outcome["test"] = read_test(path, cell.experiment)
        paths = [where / f"seed-{seed}" / "pretrain" / "result.json" for seed in base.seeds]
        pretrained = [asdict(read_result(path)) for path in paths if path.is_file()]
        summary = summarise(base, base.data.load(), outcomes, pretrained)
        summary["sweep"] = {"axes": {a.field: list(a.values) for a in axes}, "cells": rows}
        write_json(folder / "summary.json", summary)
        if base.report:
            report_or_warn(folder)
        return summary


def _train(cell: Cell, folder: Path, shared: dict[str, Path], *, quiet: bool) -> dict[str, Any]:
    """Train what is left of a cell; what the summary says of it. Accuracies are fractions."""
    where, runs, why = folder / cell.folder, list[dict[str, Any]](), None
    if not (where / "config.yaml").is_file():
        open_run_dir(where, cell.experiment, resume=False).release()
    for key, part in cell.shared_stages():
        if key in shared and not (where / part).exists():
            _copy(shared[key], where / part)
    if not (where / DIVERGED).is_file():
        try:
            runs = run(cell.experiment, where, resume=True, quiet=quiet, test=False)[cell.method]
        except NonFiniteLossError as error:  # a rate that is too high is an answer, no accident
            write_json(where / DIVERGED, {"error": str(error)})
    if not runs:
        path = where / DIVERGED
        with naming(path, RunDirectoryError, "--run_dir", "why a cell diverged", "Delete it."):
            why = str(read_json(path)["error"])
    for key, part in cell.shared_stages():
        if (where / part / "result.json").is_file():
            shared.setdefault(key, where / part)
    scores = [run["stages"][-1]["best_validation_accuracy"] for run in runs]
    return {
        "method": cell.method,
        "cell": cell.label,
        "values": dict(cell.choice),
        "folder": cell.folder,
        "validation_accuracy": float(np.mean(scores)) if scores else None,
        "sd": float(np.std(scores, ddof=1)) if len(scores) > 1 else None,
        "per_seed": scores,
        "diverged": why,
        "chosen": False,
    }


def _copy(source: Path, target: Path) -> None:
    """A finished stage, whole or not at all."""
    half = target.with_name(f".{target.name}.copy")  # of a killed sweep, or new
    shutil.rmtree(half, ignore_errors=True)
    shutil.copytree(source, half)
    half.rename(target)


def _choose(method: str, rows: Sequence[dict[str, Any]]) -> int:
    """The row of highest mean validation accuracy, the first of equals; marks it."""
    own = [i for i, r in enumerate(rows) if r["method"] == method and r["per_seed"]]
    if not own:
        raise NonFiniteLossError(
            f"every cell of {method} came to a NaN or infinite loss. Sweep lower rates."
        )
    number = max(own, key=lambda i: rows[i]["validation_accuracy"])
    rows[number]["chosen"] = True
    return number


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
