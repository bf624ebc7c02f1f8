"""Every group runs on tiny networks; a library that is not there is a row that says so."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from shared_data import REPOSITORY

from groups import GROUPS, endtoend, gpu, memory, pgd, switches, train
from harness import ours, peers
from harness.report import Options, Report

BENCH = REPOSITORY / "benchmarks" / "bench.py"
QUICK = Options(quick=True)
FROM_COMPILE = pytest.mark.filterwarnings("ignore:.*jit.* is deprecated:DeprecationWarning")


@pytest.fixture(autouse=True)
def no_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where only the package is installed: what is there takes seconds to import and warns."""

    def library(module: str, package: str) -> object:
        raise peers.Missing(f"not installed: {package} ({module})")

    monkeypatch.setattr(peers, "library", library)


@pytest.mark.parametrize("name", [n for n in GROUPS if n not in ("ops", "memory", "endtoend")])
def test_a_group_runs(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.json"
    report = Report(name, QUICK, path)
    importlib.import_module(f"groups.{name}").run(report)
    report.save()
    saved = json.loads(path.read_text())
    assert saved["quick"] and saved["rows"]
    for row in saved["rows"]:
        assert row["case"] and row["name"] and ("ms" in row or "note" in row)
    assert all(target["met"] is None for target in saved["targets"])


@FROM_COMPILE
def test_the_ops_are_timed_where_they_are_native() -> None:
    report = Report("ops", Options(quick=True, only="linf_step_"))
    importlib.import_module("groups.ops").run(report)
    first = report.rows[0]
    assert "ms" in first or first["note"].startswith("nothing to measure")


def test_pgd_counts_passes_and_compares() -> None:
    report = Report("pgd", Options(quick=True, only="vit_small"))
    pgd.run(report)
    rows = {row["name"]: row for row in report.rows}
    assert (rows["ours fp32"]["forwards"], rows["ours fp32"]["backwards"]) == (10, 10)
    # two forwards of one image compare the folded network with the plain one
    assert (rows["ours bf16"]["forwards"], rows["ours bf16"]["backwards"]) == (12, 10)
    assert (rows["RoLI's loop"]["forwards"], rows["RoLI's loop"]["backwards"]) == (11, 10)
    assert rows["ours fp32"]["times_base"] == 1.0 and rows["ours fp32"]["roofline"] > 0
    assert "not installed: foolbox" in rows["foolbox"]["note"]
    assert rows["ours fp32"]["activations_mb"] < rows["RoLI's loop"]["activations_mb"]
    values = {target["what"]: target["value"] for target in report.targets}
    assert values["vit_small b8: ours fp32, times as fast as foolbox"] is None
    gemm = values["vit_small b8: ours bf16, share of the bf16 GEMM's rate"]
    assert gemm == rows["ours bf16"]["roofline"]


def test_a_switch_that_this_version_lacks_is_a_row() -> None:
    report = Report("switches", QUICK)
    switch = switches.Switch("none such", "cnn", on={"no_such_field": True})
    switches.one(report, switch, "none such, cnn")
    (row,) = report.rows
    assert row["note"].startswith("not in this version") and "no_such_field" in row["note"]


@pytest.mark.parametrize("method", ["linear", "lora", "full"])
def test_a_training_step_of_either_kind_moves_what_the_method_trains(method: str) -> None:
    case = train.Case(method)
    report = Report("train", QUICK)
    times = train.one(report, case)
    assert {"ours fp32", "ours bf16", "RoLI's loop", "RoLI's loop, clean"} == set(times.seconds)
    assert all(row["images_per_second"] > 0 for row in report.rows if "ms" in row)


def test_the_gpu_targets_stand_in_the_table_of_any_machine() -> None:
    report = Report("gpu", QUICK)
    gpu.run(report)
    assert [target["what"] for target in report.targets] == list(gpu.LIMITS)
    assert all(target["value"] is None for target in report.targets)
    assert "CUDA device" in report.rows[0]["note"]


@FROM_COMPILE
def test_what_is_measured_on_a_gpu_runs_on_a_cpu_as_well() -> None:
    found = gpu.Found(Report("gpu", QUICK), {})
    gpu.measure_all(found)
    with_graph = list(gpu.LIMITS)[-1]
    assert set(gpu.LIMITS) - {with_graph} <= set(found.values)
    assert all(value > 0 for value in found.values.values() if value is not None)


def test_peak_memory_comes_from_a_process_of_its_own() -> None:
    row = memory.peak(QUICK, "attack", "ours fp32")
    assert 1 < row["peak_mb"] < 2000


def test_a_process_that_fails_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "Traceback\nMemoryError: none left\n")
    monkeypatch.setattr(subprocess, "run", lambda *args, **named: failed)
    row = memory.peak(QUICK, "attack", "ours fp32")
    assert row == {"note": "failed: MemoryError: none left"}


def test_an_unknown_engine_field_is_missing() -> None:
    with pytest.raises(peers.Missing, match="nonsense"):
        ours.bound(lambda x: x, {"nonsense": 1})  # type: ignore[arg-type]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCH), *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_command_prints_the_table_last_and_again_from_its_files(tmp_path: Path) -> None:
    out = str(tmp_path)
    done = run("gpu", "growth", "--only", "steps", "--quick", "--threads", "1", "--out", out)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"gpu-cpu.json", "growth-cpu.json"}
    printed = done.stdout[done.stdout.index("\ngpu: ") :]
    again = run("--table", "gpu", "growth", "--out", out, "--merge", str(tmp_path / "all.json"))
    assert again.stdout == printed
    assert set(json.loads((tmp_path / "all.json").read_text())) == {"gpu", "growth"}


def test_an_unknown_group_is_named() -> None:
    done = run("pdg")
    assert done.returncode == 2 and "no group pdg" in done.stderr


def test_whole_training_runs_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endtoend, "CANDIDATES", {"fp32": [], "wrong": ["--no_such_flag", "1"]})
    report = Report("endtoend", QUICK)
    endtoend.run(report)
    probe, finetune, wrong = report.rows
    assert (probe["case"], finetune["case"]) == ("digits, probe", "digits, finetune")
    assert probe["images_per_second"] > 0 and finetune["images_per_second"] > 0
    assert wrong["note"].startswith("did not run") and "no_such_flag" in wrong["note"]
