"""An analysis.json of another shape is left out with a line that says where it differs."""

import copy
from typing import Any

import pytest
from made_up_run import analysis_of

from roli_fast.report.shape import ANALYSIS, wrong


def changed(path: tuple[str | int, ...], value: Any) -> Any:
    """An analysis with another value at `path`; a KeyError as the value deletes it."""
    tree = copy.deepcopy(analysis_of("roli", 0))
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
