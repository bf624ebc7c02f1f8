"""A file of another shape is left out, or refused, with a line that says where it differs."""

import copy
from pathlib import Path
from typing import Any

import pytest
from made_up_run import analysis_of, summary, write_json, write_run

from roli_fast.errors import RunDirectoryError
from roli_fast.report import write
from roli_fast.report.shape import ANALYSIS, wrong, wrong_summary


def changed(path: tuple[str | int, ...], value: Any, tree: Any = None) -> Any:
    """An analysis, or `tree`, with another value at `path`; a KeyError as the value deletes it."""
    tree = copy.deepcopy(tree or analysis_of("roli", 0))
    inner: Any = tree
    for step in path[:-1]:
        inner = inner[step]
    if value is KeyError:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return tree


def test_an_analysis_fits() -> None:
    assert wrong(analysis_of("roli", 0), ANALYSIS) == ""


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        (("stages",), {}, "stages: expected a list, got {}"),
        (("stages", 0, "name"), 3, "stages[0].name: expected text, got 3"),
        (("stages", 1, "end", "head", "norm"), "x", "stages[1].end.head.norm: expected a number"),
        (("stages", 1, "change", "clean"), KeyError, "stages[1].change.clean is missing"),
        (("stages", 0, "change"), 1, "stages[0].change: expected fields, got 1"),
        (("calibration", "clean", "before", "bins"), 1, "calibration.clean.before.bins: expected"),
        (("curve", "points", 0, "eps"), True, "curve.points[0].eps: expected a number"),
    ],
)
def test_what_differs_is_named(path: tuple[str | int, ...], value: Any, told: str) -> None:
    assert wrong(changed(path, value), ANALYSIS).startswith(told)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("calibration",), None),
        (("curve",), None),
        (("notes",), KeyError),
        (("stages", 0, "start", "separation"), None),
        (("stages", 0, "end", "head", "norm"), None),
    ],
)
def test_what_may_be_missing_or_null_fits(path: tuple[str | int, ...], value: Any) -> None:
    assert wrong(changed(path, value), ANALYSIS) == ""


STAGE = ("methods", "roli", "per_seed", 0, "stages", 0)


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        (("methods",), 3, "methods: expected fields, got 3"),
        (
            (*STAGE, "train_seconds"),
            None,
            "methods.roli.per_seed[0].stages[0].train_seconds: expec",
        ),
        ((*STAGE, "name"), KeyError, "methods.roli.per_seed[0].stages[0].name is missing"),
        (("comparisons", 0, "methods"), None, "comparisons[0].methods: expected a list, got None"),
    ],
)
def test_a_summary_that_differs_is_refused(
    path: tuple[str | int, ...], value: Any, told: str, tmp_path: Path
) -> None:
    assert wrong_summary(summary()) == ""
    run = write_run(tmp_path / "run")
    write_json(run / "summary.json", changed(path, value, summary()))
    with pytest.raises(RunDirectoryError) as error:
        write(run)
    assert told in str(error.value)


def test_damaged_files_of_an_unfinished_run_are_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "summary.json").unlink()
    write_json(run / "seed-0" / "roli" / "stage-1-probe" / "result.json", {})
    write_json(run / "seed-1" / "roli" / "test.json", {"images": 400})
    text = write(run).read_text(encoding="utf-8")
    assert "seed-0/roli/stage-1-probe/result.json: name is missing" in text
    assert "seed-1/roli/test.json: clean_accuracy is missing" in text
