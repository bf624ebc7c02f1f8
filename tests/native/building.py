"""Compiles test programs from the kernels' sources."""

import os
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

import pytest

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"
EMULATOR = HERE / "cuda_on_cpu"


def missing(reason: str) -> NoReturn:
    """Skip the test; with ROLI_FAST_REQUIRE_EXT=1 fail instead."""
    if os.environ.get("ROLI_FAST_REQUIRE_EXT", "") not in ("", "0"):
        pytest.fail(f"ROLI_FAST_REQUIRE_EXT is set and {reason}")
    pytest.skip(reason)


def cpu_sources(csrc: Path = CSRC) -> list[Path]:
    """The CPU kernels without their bindings."""
    return sorted((csrc / "cpu").glob("*.cpp"))


def compiled(
    output: Path, sources: Iterable[Path], flags: Iterable[str], csrc: Path = CSRC
) -> Path:
    """`output`, a program or library that g++ made of the sources; see `missing`."""
    folders = [f"-I{folder}" for folder in (csrc, EMULATOR, HERE / "sanitizers")]
    # Contraction off, as in CMakeLists.txt: the emulator and each CPU level round alike.
    command = ["g++", "-std=c++17", "-ffp-contract=off", "-w", *flags, *folders]
    try:
        done = subprocess.run(
            [*command, *map(str, sources), "-o", str(output)], capture_output=True, text=True
        )
    except FileNotFoundError:
        missing("g++ is not on PATH")
    # No half type, no sanitizer's library, no contexts to switch.
    if any(lack in done.stderr for lack in ("_Float16", "cannot find", "ucontext")):
        missing(f"this g++ cannot build the program: {done.stderr.splitlines()[0]}")
    assert done.returncode == 0, done.stderr
    return output
