"""The script for a machine with a GPU, on one without."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from shared_data import REPOSITORY


def test_without_a_device_it_runs_nothing_and_says_so() -> None:
    folder = REPOSITORY / "benchmarks"
    before = {path: path.stat().st_mtime for path in folder.rglob("*") if path.is_file()}
    environ = {**os.environ, "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        ["bash", "gpu.sh"], cwd=folder, env=environ, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert done.stdout == "no CUDA device that torch can use: nothing was run\n"
    after = {path: path.stat().st_mtime for path in folder.rglob("*") if path.is_file()}
    assert after == before


def test_it_is_a_script_that_bash_can_read() -> None:
    path = REPOSITORY / "benchmarks" / "gpu.sh"
    assert os.access(path, os.X_OK)
    assert subprocess.run(["bash", "-n", str(path)]).returncode == 0


@pytest.fixture
def device(tmp_path: Path) -> dict[str, str]:
    """An environment whose python sees a GPU and does nothing but say what it was asked to."""
    python, sanitizer = tmp_path / "python", tmp_path / "compute-sanitizer"
    python.write_text(
        "#!/bin/bash\n"
        'if [ "$1" = "-" ]; then echo "9.0 NVIDIA H100 80GB"; exit; fi\n'
        'case "$*" in\n'
        "  *--table*) echo THE TABLE $ROLI_FAST_CUDA_ARCHS $* ;;\n"
        '  *setup.py*) echo build; exit "${BUILD_STATUS:-0}" ;;\n'
        '  *pytest*) echo tests; sleep "${TESTS_SLEEP:-0}" ;;\n'
        "  *bench.py*) echo measuring ;;\n"
        "esac\n"
    )
    sanitizer.write_text("#!/bin/bash\necho sanitizer\n")
    python.chmod(0o755), sanitizer.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    return {**os.environ, "PYTHON": str(python), "PATH": path, "TMPDIR": str(tmp_path)}


def script(environ: dict[str, str]) -> tuple[int, list[str]]:
    command = ["bash", str(REPOSITORY / "benchmarks" / "gpu.sh")]
    done = subprocess.run(command, env=environ, capture_output=True, text=True)
    return done.returncode, done.stdout.splitlines()


def test_with_a_device_each_part_runs_and_the_table_is_last(device: dict[str, str]) -> None:
    status, lines = script(device)
    assert status == 0
    said = [line for line in lines if not line.startswith("==")]
    assert said[:4] == ["build", "tests", "sanitizer", "measuring"]
    assert said[4].startswith("THE TABLE 9.0 ") and lines[-1] == said[4]
    assert "--merge benchmarks/results/nvidia-h100-80gb.json" in said[4]


def test_what_fails_or_hangs_is_said_and_stops_nothing(device: dict[str, str]) -> None:
    status, lines = script({**device, "BUILD_STATUS": "3", "TESTS_SLEEP": "60", "LIMIT": "7"})
    assert status == 1
    assert lines[-1].startswith("THE TABLE")
    assert any(line.startswith("== build: status 3") for line in lines)
    assert any(line.startswith("== tests: status 124") for line in lines)
    assert "== benchmarks: no time left" in lines
    assert lines[-2] == "== failed or cut short: build tests sanitizer benchmarks"
