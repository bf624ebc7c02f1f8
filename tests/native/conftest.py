"""Tests of compiled code are skipped, with the reason, where there is none."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from building import missing

from roli_fast import ops

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests" / "ops"))  # for the cases of the ops
sys.path.append(str(ROOT / "benchmarks"))  # for what reads machine code


@pytest.fixture
def kernels() -> None:
    """Skip without CPU kernels; with ROLI_FAST_REQUIRE_EXT=1 fail instead."""
    chosen = ops.backend("linf_step_", "cpu", torch.float32)
    if chosen.name == "reference":
        missing(f"there are no compiled kernels: {chosen.reason}")


@pytest.fixture
def module_file(kernels: None) -> Path:
    """The file of `roli_fast._C`."""
    import importlib

    return Path(str(importlib.import_module("roli_fast._C").__file__))


@pytest.fixture
def tool():
    """A command's path; skips the test where it is not installed."""

    def find(name: str) -> str:
        path = shutil.which(name)
        if path is None:
            pytest.skip(f"{name} is not on PATH")
        return path

    return find


@pytest.fixture
def python():
    """Run a program in a fresh interpreter and return what it prints."""

    def run(program: str, *, code: int = 0, **environ: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | environ,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run
