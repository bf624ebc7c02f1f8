"""The script for a machine with a GPU, on one without."""

import os
import subprocess
import sys

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
