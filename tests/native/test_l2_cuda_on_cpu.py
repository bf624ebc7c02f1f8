"""The CUDA kernels with sums, barriers and shuffles, run on the CPU under sanitizers.

g++ compiles the kernels' bodies; each thread of a block has a stack of its own (block.h). The
program compares every op with the CPU kernels for odd lengths, tails and misaligned memory, which
is allocated to the byte, and checks that the emulator notices a divergent barrier.
"""

import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent / "cuda_on_cpu"
CSRC = Path(__file__).resolve().parents[2] / "csrc"


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The program, with AddressSanitizer and UndefinedBehaviorSanitizer."""
    output = tmp_path_factory.mktemp("cuda_on_cpu") / "run_l2"
    flags = [
        "-std=c++17",
        "-O1",
        "-ffp-contract=off",
        "-w",
        "-DRF_NO_DISPATCH",
        "-DRF_MAX_BLOCKS=8",
    ]
    flags += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    sources = [str(HERE / "run_l2.cpp"), *map(str, sorted((CSRC / "cpu").glob("*.cpp")))]
    command = ["g++", *flags, f"-I{HERE}", f"-I{CSRC}", *sources, "-o", str(output)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("g++ is not on PATH")
    if "_Float16" in done.stderr or "cannot find" in done.stderr:
        pytest.skip(f"this g++ cannot build the emulation: {done.stderr.splitlines()[0]}")
    assert done.returncode == 0, done.stderr
    return output


def test_the_kernels_agree_with_the_cpu_and_touch_nothing_else(program):
    done = subprocess.run([program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 differences" in done.stdout
