"""Damaged files of a run: the page is made of the others, or one error names the run."""

import contextlib
import random
from pathlib import Path

import pytest
from damages import change
from made_up_run import write_run
from reading import Read

from roli_fast.errors import RunDirectoryError
from roli_fast.report import write

FILES = ("*.json", "*.jsonl", "*.npz", "config.yaml")


@pytest.mark.parametrize("number", range(8))
def test_a_damaged_file_ends_in_a_page_or_in_one_error(number: int, tmp_path: Path) -> None:
    run, draw = write_run(tmp_path / "run"), random.Random(number)
    if number % 3 == 0:
        (run / "summary.json").unlink()
    file = draw.choice(sorted(path for pattern in FILES for path in run.rglob(pattern)))
    file.write_bytes(change(file.read_bytes(), file.name, draw))
    with contextlib.suppress(RunDirectoryError):
        write(run)


def test_what_cannot_be_read_is_left_out_and_told(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    damages = {
        "seed-0/roli/analysis.json": (b"{", "Expecting"),
        "seed-0/ranli/analysis.json": (b"[]", "not a JSON object"),
        "seed-1/roli/analysis.json": (b'{"schema": 9}', "schema 9, and this version reads 1"),
        "seed-1/ranli/analysis.json": (b'{"schema": 1}', "'attack' is missing"),
        "seed-0/roli/examples.npz": (b"no archive", ""),
        "environment.json": (b"\xff", ""),
    }
    for name, (data, _) in damages.items():
        (run / name).write_bytes(data)
    lines = (run / "metrics.jsonl").read_bytes().splitlines()
    lines[1:1] = [b"5", b'{"seed": 0}', b"\xff", b"[" * 5000]
    (run / "metrics.jsonl").write_bytes(b"\n".join([*lines, b'{"see']))
    page = Read(write(run).read_text()).text
    for name, (_, told) in damages.items():
        assert f"Left out, as it could not be read: {name}: {told}" in page
    assert "could not be read: metrics.jsonl: lines 2, 3, 4 and 5." in page
    assert "68.0 ± 2.8 %" in page
