"""A sweep from beginning to end: train every cell, choose on validation, test what was chosen."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from roli_fast.data import DataSource
from roli_fast.errors import NonFiniteLossError, RunDirectoryError
from roli_fast.files import write_json
from roli_fast.running.text import align
from roli_fast.train.checks import check
from roli_fast.train.config import SCHEMA
from roli_fast.train.experiment import Experiment, same_experiment
from roli_fast.train.pipeline import run
from roli_fast.train.postprocess import report_or_warn
from roli_fast.train.run_directory import identity, open_run_dir, saved_environment
from roli_fast.train.summary import percent, summarise
from roli_fast.train.sweep import Axis, Cell, cells
from roli_fast.train.sweep_files import (
    SWEEP,
    SharedStages,
    axes_text,
    read_diverged,
    read_outcomes,
    read_pretrained,
    read_validation,
    write_diverged,
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
