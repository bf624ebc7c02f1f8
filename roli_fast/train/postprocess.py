"""What follows the training of a run: its analysis, its report, and a short table of both."""

import logging
from pathlib import Path
from typing import Any

from roli_fast import report
from roli_fast.errors import InterruptedRunError, PeerError
from roli_fast.report.read import values
from roli_fast.running.text import align
from roli_fast.train.analysis import FILE, MethodAnalysis, read_analysis
from roli_fast.train.context import Context
from roli_fast.train.experiment import Experiment

logger = logging.getLogger("roli_fast.train")


def analyse(analysis: MethodAnalysis) -> None:
    """Make a method's light analysis, in the leading process; the others wait.

    An analysis that fails loses nothing of the run: it is told, with the command that repeats it.

    Raises:
        InterruptedRunError: a signal came; a resume makes the analysis anew.
        PeerError: another process is gone.
    """
    team = analysis.context.team
    if not team.leads:
        while team.from_first(None):  # a word between two batches, see `MethodAnalysis.watch`
            analysis.context.check()
        return
    try:
        if analysis.experiment.analysis_images:
            analysis.make()
    except (InterruptedRunError, PeerError):
        raise
    except Exception as error:  # whatever it is, hours of training are worth more
        analysis.context.interrupt.check()  # a signal that ended the decoding workers is a stop
        again = f"python -m roli_fast.analyze {analysis.folder}"
        kind = type(error).__name__
        logger.warning("no analysis of %s: %s: %s", analysis.folder, kind, error)
        logger.warning("the run goes on; repeat the analysis with: %s", again)
    team.from_first(False)


def write_report(experiment: Experiment, run_dir: Path, context: Context) -> None:
    """report.html, by the leading process; a failure is told and changes nothing."""
    if experiment.report and context.team.leads:
        report_or_warn(run_dir)


def report_or_warn(run_dir: Path) -> None:
    """Write report.html, or tell why there is none."""
    try:
        report.write(run_dir)
    except Exception as error:  # a page that cannot be drawn must not fail a finished run
        logger.warning("no report.html: %s: %s", type(error).__name__, error)
        logger.warning("repeat it with: python -m roli_fast.report %s", run_dir)


def analysis_table(run_dir: Path, methods: list[str]) -> str:
    """Head norm, drift and calibration of each method, means over seeds; empty without any."""
    rows = []
    for method in methods:
        paths = sorted(run_dir.glob(f"seed-*/{method}/{FILE}"))
        trees = [read_analysis(path) for path in paths]
        trees = [tree for tree in trees if tree["stages"]]
        if trees:
            rows.append([method, *_cells(trees)])
    if not rows:
        return ""
    header = ["method", "head norm", "drift clean", "drift attacked"]
    header += ["ECE clean > with T", "ECE attacked > with T"]
    remark = (
        "Head norm: at each stage's start and at the end. Drift: of features over the last stage, "
        "relative. ECE: in points, of test images; with a temperature where one could be fitted."
    )
    return "\n".join([*align([header, *rows]), "", remark])


def _cells(trees: list[dict[str, Any]]) -> list[str]:
    stages = [
        *(_mean(trees, "stages", i, "start", "head", "norm") for i in range(_count(trees))),
        _mean(trees, "stages", -1, "end", "head", "norm"),
    ]
    cells = [" > ".join("-" if norm is None else f"{norm:.3g}" for norm in stages)]
    for kind in ("clean", "adversarial"):
        cells.append(_short(_mean(trees, "stages", -1, "change", kind, "relative"), "{:.3f}"))
    for kind in ("clean", "adversarial"):
        fitted = _mean(trees, "calibration", kind, "fitted") == 1
        found = [_mean(trees, "calibration", kind, when, "ece") for when in ("before", "after")]
        shown = [_short(None if p is None else 100 * p, "{:.1f}") for p in found]
        cells.append(" > ".join(shown) if fitted else shown[0])
    return cells


def _count(trees: list[dict[str, Any]]) -> int:
    return min(len(tree["stages"]) for tree in trees)


def _mean(trees: list[dict[str, Any]], *path: str | int) -> float | None:
    """The mean of a number over analyses; None where one of them lacks it."""
    found = values(trees, *path)
    return sum(found) / len(found) if len(found) == len(trees) else None


def _short(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
