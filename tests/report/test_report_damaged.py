"""Damaged files of a run: the page is made of the others, or one error names what is damaged."""

import contextlib
import random
from pathlib import Path
from typing import Any

import pytest
from damages import change
from made_up_run import change_json, write_json, write_run
from reading import Read

from roli_fast.errors import RunDirectoryError
from roli_fast.report import write

FILES = ("*.json", "*.jsonl", "*.npz", "config.yaml")


@pytest.mark.parametrize("number", range(30))
def test_a_damaged_file_ends_in_a_page_or_in_one_error(number: int, tmp_path: Path) -> None:
    run, draw = write_run(tmp_path / "run"), random.Random(number)
    if number % 3 == 0:
        (run / "summary.json").unlink()
    file = draw.choice(sorted(path for pattern in FILES for path in run.rglob(pattern)))
    file.write_bytes(change(file.read_bytes(), file.name, draw))
    with contextlib.suppress(RunDirectoryError):
        write(run)
        write(run, [write_run(tmp_path / "other")], out=tmp_path / "both.html")


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("analysis.json", b"{", "Expecting"),
        ("analysis.json", b"[]", "not a JSON object"),
        ("analysis.json", b'{"schema": 9}', "schema 9, and this version reads 1"),
        ("analysis.json", b'{"schema": 1}', "'attack' is missing"),
        ("examples.npz", b"no archive", ""),
        ("evaluation.json", b'{"clean": 1}', "'norms' is missing"),
    ],
)
def test_a_damaged_file_is_left_out(tmp_path: Path, name: str, data: bytes, told: str) -> None:
    run = write_run(tmp_path / "run")
    (run / "seed-0" / "roli" / name).write_bytes(data)
    page = Read(write(run).read_text()).text
    assert f"Left out, as it could not be read: seed-0/roli/{name}: {told}" in page
    assert "68.0 ± 2.8 %" in page


SHARE = {"accuracy": 0.5, "interval_95": [0.4, 0.6]}
EVALUATION = {"clean": SHARE, "norms": {"linf": {}}, "images": 6, "data": {}, "attacks": []}


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("evaluation.json", EVALUATION | {"norms": []}),
        ("evaluation.json", EVALUATION | {"clean": {"accuracy": 0.5, "interval_95": [0]}}),
        ("environment.json", {"threads": {}, "packages": 3}),
        ("seed-0/roli/analysis.json", {"seconds": 10**400}),
        ("seed-0/roli/analysis.json", {"calibration": {"clean": {"before": {"bins": 1}}}}),
    ],
)
def test_a_value_that_no_page_can_be_made_of_leaves_its_file_out(
    name: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    run, other = write_run(tmp_path / "run"), write_run(tmp_path / "other")
    write_json(run / "evaluation.json", EVALUATION)
    change_json(run / name, **fields)
    # and in another run of the page
    change_json(other / "environment.json", identity={"data test images": {}})
    for page in (write(run), write(run, [other])):
        text = Read(page.read_text()).text
        assert f"Left out, as it could not be read: {name}: " in text
        assert "68.0 ± 2.8 %" in text
    assert "could not be read: environment.json: TypeError: unhashable type: 'dict'." in text


def test_all_damaged_files_of_an_unfinished_run_are_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "summary.json").unlink()
    write_json(run / "seed-0" / "roli" / "stage-1-probe" / "result.json", {"epochs": 1})
    change_json(run / "seed-1" / "roli" / "test.json", robust_accuracy=3)
    text = Read(write(run).read_text()).text
    assert "seed-0/roli/stage-1-probe/result.json: 'name' is missing" in text
    assert "seed-1/roli/test.json: TypeError" in text


def test_a_damaged_line_of_the_metrics_is_told(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    lines = (run / "metrics.jsonl").read_bytes().splitlines()
    lines[1:1] = [b"5", b'{"seed": 0}', b"\xff", b"[" * 5000]
    (run / "metrics.jsonl").write_bytes(b"\n".join([*lines, b'{"see']))
    assert "could not be read: metrics.jsonl: lines 2, 3, 4 and 5." in write(run).read_text()
