"""Groups on tiny networks; a library that is not there is a row that says so.

`make bench-quick` runs all of them.
"""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from shared_data import REPOSITORY

from groups import GROUPS, cases_of, gpu, kernels, ops, pgd, switches
from harness import ours, peers
from harness.report import Options, Report

QUICK = Options(quick=True)


@pytest.fixture
def no_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where only the package is installed: what is there takes seconds to import and warns."""

    def library(module: str, package: str) -> object:
        raise peers.Missing(f"not installed: {package} ({module})")

    monkeypatch.setattr(peers, "library", library)


def test_every_group_has_cases_and_every_op_rounds() -> None:
    assert all(cases_of(group) for group in (*GROUPS, "memory", "endtoend"))
    assert set(kernels.COPIED) == set(kernels.MAKERS)
    assert set(ops.ROUNDS) == set(ops.CASES) >= {name.split()[0] for name in ops.TARGETS}


def test_pgd_counts_passes_and_compares(no_peers: None) -> None:
    report = Report("pgd", QUICK)
    pgd.CASES["vit_small b8"](report)
    rows = {row["name"]: row for row in report.rows}
    assert (rows["ours fp32"]["forwards"], rows["ours fp32"]["backwards"]) == (10, 10)
    assert (rows["ours bf16"]["forwards"], rows["ours bf16"]["backwards"]) == (10, 10)
    assert (rows["RoLI's loop"]["forwards"], rows["RoLI's loop"]["backwards"]) == (11, 10)
    assert rows["ours fp32"]["times_base"] == 1.0 and rows["ours fp32"]["roofline"] > 0
    assert "not installed: foolbox" in rows["foolbox"]["note"]
    assert rows["ours fp32"]["activations_mb"] < rows["RoLI's loop"]["activations_mb"]
    values = {target["what"]: target["value"] for target in report.targets}
    assert values["vit_small b8: ours fp32, times as fast as foolbox"] is None
    gemm = values["vit_small b8: ours bf16, share of the bf16 GEMM's rate"]
    assert gemm == rows["ours bf16"]["roofline"]


def test_what_is_missing_is_a_row() -> None:
    report = Report("switches", QUICK)
    switches.run(switches.Switch("none such", "cnn", on={"no_such_field": True}), report)
    assert report.timed is None and report.rows[0]["note"].startswith("not in this version")
    with pytest.raises(peers.Missing, match="nonsense"):
        ours.bound(lambda x: x, {"nonsense": 1})  # type: ignore[arg-type]
    report = Report("gpu", Options())
    for case in gpu.CASES.values():
        case(report)
    assert len(report.targets) == 6 and all(goal["value"] is None for goal in report.targets)
    assert "CUDA device" in report.rows[0]["note"]


def test_a_kernels_rate_stands_beside_a_copys_and_the_predicted_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """4 tensors of 384 elements in 1 us, a copy of as many bytes in 0.5 us."""
    made = {"native": lambda: 1e-6, "copy": lambda: 5e-7}
    monkeypatch.setattr(kernels, "MAKERS", {"linf_step_": lambda *_: made})
    monkeypatch.setattr(kernels, "seconds", lambda call, _device: call())
    found = SimpleNamespace(op="linf_step_", dtype="fp32", of_least=0.875)
    model = SimpleNamespace(predictions=lambda: [found])
    monkeypatch.setitem(sys.modules, "sass_model", model)  # type: ignore[arg-type]
    report = Report("kernels", QUICK)
    kernels.CASES["ops"](report)
    assert [row["note"] for row in report.rows] == [
        "6 GB/s, 50 % of copy_, predicted at most 88 %",
        "3 GB/s, 50 % of copy_",
    ]


@pytest.mark.slow
def test_the_command_gives_the_rounds_to_pytest_benchmark(tmp_path: Path) -> None:
    """Its statistics are those of our rounds, with the ratios beside them."""
    saved, out = tmp_path / "saved.json", tmp_path / "out"
    command = [sys.executable, "-m", "pytest", "benchmarks", "--benchmark-only", "--threads=1"]
    command += ["-k", "quick and growth", f"--benchmark-json={saved}", f"--out={out}"]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    benchmarks = json.loads(saved.read_text())["benchmarks"]
    (first,) = (one for one in benchmarks if one["group"] == "growth: steps, fp32")
    rows = json.loads((out / "growth-cpu.json").read_text())["rows"]
    base, other = [row for row in rows if row["case"] == "steps, fp32"][:2]
    assert first["extra_info"]["backend"]
    rounds = [1e3 * seconds for seconds in first["stats"]["data"]]
    assert rounds == pytest.approx(base["rounds_ms"], rel=1e-4)
    assert first["extra_info"]["times_base"]["steps 2"] == pytest.approx(
        other["times_base"], rel=1e-3
    )
    assert "\ntargets" in done.stdout[done.stdout.index("growth: cpu, 1 threads") :]
