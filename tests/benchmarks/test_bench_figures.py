"""Figures and README tables, from results made by hand."""

import json
from pathlib import Path

import pytest

import plot
import tables
from groups import ops
from harness.report import Options, Report
from harness.timing import Times

ATTACKS = {
    "ours fp32": [1.0, 1.0],
    "ours bf16": [0.25, 0.25],
    "torchattacks": [1.0, 1.5],
    "RoLI's loop": [2.0, 2.0],
}
UPDATES = {"ours fp32": [2.0, 2.0], "ours bf16": [1.0, 1.0], "RoLI's loop": [3.0, 3.0]}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A folder with four groups."""
    pgd = report(tmp_path, "pgd")
    pgd.case["vit_small b8"] = {}
    pgd.add("vit_small b8", Times(ATTACKS), "ours fp32", {"ours bf16": {"roofline": 0.625}})
    train = report(tmp_path, "train")
    train.case["full vit_small b8"] = {}
    train.add("full vit_small b8", Times(UPDATES), "ours fp32", {})
    growth = report(tmp_path, "growth")
    growth.case["start"] = {"batch": 4}
    points = Times({"batch 1": [1.0, 1.1], "batch 2": [2.0, 2.1]})
    values = {"batch 1": {"value": 1}, "batch 2": {"value": 2}}
    growth.add("batch, fp32", points, "batch 1", values)
    switches = report(tmp_path, "switches")
    columns = {"on": {"times_as_fast": 3.0, "expected": "2.5"}}
    switches.add("bf16, vit_tiny", Times({"off": [3.0], "on": [1.0]}), "off", columns)
    return tmp_path


def report(folder: Path, name: str) -> Report:
    return Report(name, Options(threads=1), folder / f"{name}-cpu.json")


def test_speeds_are_relative_to_the_base_round_by_round(results: Path) -> None:
    saved = json.loads((results / "pgd-cpu.json").read_text())
    (found,) = plot.speeds(saved, "torchattacks").values()
    assert found == {
        "RoLI's loop": 0.625,
        "torchattacks": 1.0,
        "ours fp32": 1.25,
        "ours bf16": 5.0,
    }
    assert list(found) == [name for name in plot.ORDER if name in found]


def test_the_program_writes_pngs(results: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    out = tmp_path / "figures"
    monkeypatch.setattr("sys.argv", ["plot.py", "--results", str(results), "--out", str(out)])
    assert plot.main() == 0
    assert {path.stem for path in out.glob("*.png")} == {"speed-cpu", "growth-cpu", "switches-cpu"}
    monkeypatch.setattr("sys.argv", ["plot.py", "--results", str(out), "--out", str(out)])
    assert plot.main() == 0 and capsys.readouterr().out.endswith("switches: no results\n")


def test_the_tables_tables_hold_the_measured_numbers(results: Path, monkeypatch) -> None:
    def read(name: str) -> object:
        path = results / f"{name}.json"
        return json.loads(path.read_text()) if path.exists() else None

    monkeypatch.setattr(tables, "read", read)
    lines = tables.throughput().splitlines()
    attack = "| vit_small b8 | 1000 ms | 1.25x | - | - | - | 2.00x | 0.25x | 62 % |"
    update = "| full vit_small b8 | 2000 ms | 0.50x | 1.50x | - |"
    assert attack in lines and update in lines
    assert "| bf16, vit_tiny | 2.5 | 3.00 |" in tables.switches().splitlines()
    monkeypatch.setattr(tables, "read", lambda name: None)
    assert tables.throughput() is None and tables.switches() is None


def test_the_pages_show_what_the_results_say() -> None:
    """Else run: make figures."""
    for page in tables.PAGES:
        text = (tables.ROOT / page).read_text(encoding="utf-8")
        assert tables.rendered(page, text) == text, page


def test_the_table_of_ops_is_read_from_what_the_group_writes(tmp_path: Path, monkeypatch) -> None:
    found = report(tmp_path, "ops")
    times = Times({"native": [1e-3], "eager": [4e-3], "inductor": [2e-3], "copy": [1e-3]})
    for shape in ("64x3x32x32", "64x3x224x224"):
        found.extra[f"linf_step_ {shape} float32"] = ops.summary(times, {})
    halves = Times({"native": [1e-3], "float32": [3e-3]})
    found.extra["linf_step_ bf16 beside fp32"] = ops.summary(halves, {})
    found.machine["build"] = {"cpu_level": "x86-64-v4"}
    found.save()
    monkeypatch.setattr(tables, "_read", lambda _name: json.loads(found.path.read_text()))
    row = "| `linf_step_` | 1 ms | 4x | 2x | 1 ms | 4x | 2x | 1x | 3.0x |"
    assert row in tables.ops_cpu().splitlines()
