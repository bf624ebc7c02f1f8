"""Facts about the compiled CUDA kernels, read from the module without a GPU."""

import re
import subprocess

import pytest

from roli_fast import ops

KERNELS = 6  # three storage types, with and without vectors


@pytest.fixture
def cuobjdump(module_file, tool):
    """Run cuobjdump on the module; skipped without CUDA kernels or without the tool."""
    if ops.build_info()["cuda"] is None:
        pytest.skip("the module was built without CUDA")
    path = tool("cuobjdump")
    tool("nvdisasm")  # which cuobjdump calls

    def run(*options: str) -> str:
        done = subprocess.run([path, *options, str(module_file)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_no_kernel_spills_and_registers_stay_few(cuobjdump):
    usage = re.findall(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", cuobjdump("-res-usage"))
    architectures = ops.build_info()["cuda_architectures"].count("-real")
    assert len(usage) == KERNELS * architectures
    for registers, stack, _, local in usage:
        assert int(registers) <= 64, "more than 64 registers: fewer than 4 blocks of 256 threads"
        assert int(stack) == 0 and int(local) == 0


def test_vector_kernels_move_16_bytes_at_a_time(cuobjdump):
    listing = cuobjdump("-sass", "-arch", "sm_90")
    functions = re.split(r"Function : ", listing)[1:]
    assert len(functions) == KERNELS
    vectorised = [text for text in functions if "LDG.E.128" in text or "LD.E.128" in text]
    assert len(vectorised) == KERNELS // 2
    for text in vectorised:
        assert len(re.findall(r"LDG?\.E\.128", text)) >= 3
        assert len(re.findall(r"STG?\.E\.128", text)) >= 1
        assert not re.search(r"\b(LDL|STL)\b", text), "a vector lives in local memory"


def test_the_arithmetic_is_not_contracted(cuobjdump):
    """Apart from address arithmetic (IMAD) nothing is fused: results would differ from the CPU."""
    assert "FFMA" not in cuobjdump("-sass", "-arch", "sm_90")
