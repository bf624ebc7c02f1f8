"""Facts about the compiled CUDA kernels, read from the module without a GPU."""

import re
import subprocess
from collections import Counter

import pytest

from roli_fast import ops

# Three storage types, with and without vectors; l1_kernel also with and without a step.
# sum_kernel serves both files of L2 kernels. A name that holds another comes first.
KERNELS = {
    "apgd_linf_step_kernel": 6,
    "apgd_l2_length_kernel": 6,
    "apgd_l2_step_kernel": 6,
    "l2_step_kernel": 6,
    "sum_kernel": 12,
    "decide_kernel": 1,
    "copy_kernel": 2,
    "step_kernel": 6,
    "l1_kernel": 12,
    "start_kernel": 6,
    "start_totals": 1,
    "lora_inner_outer": 6,  # two types, ranks up to 16, 32 and 64
    "lora_reduce": 1,
    "lora_merge_kernel": 5,  # pairs of types
    "lora_dropout_kernel": 6,
}
# l1: one block of 512 threads a sample. Sums in fp64: 3 blocks of 256 threads. Else 4 of them.
REDUCING = ("apgd_l2_length_kernel", "apgd_l2_step_kernel", "l2_step_kernel", "sum_kernel")
MOST_REGISTERS = {"l1_kernel": 128, "lora_inner_outer": 128} | dict.fromkeys(REDUCING, 80)
DIVIDES = ("l1_kernel", "start_kernel", "start_totals", *REDUCING[:3])
"""Exact divisions and roots are made of fused instructions themselves."""


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


def functions(listing: str) -> dict[str, str]:
    """Mangled name -> what cuobjdump prints of it."""
    parts = re.split(r"Function : ?", listing)[1:]
    return {part.split()[0].strip(":"): part for part in parts}


def kind(name: str) -> str:
    """The kernel's name without template arguments."""
    return next(known for known in KERNELS if known in name)


def test_no_kernel_spills_and_registers_stay_few(cuobjdump):
    usage = re.findall(
        r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", cuobjdump("-res-usage")
    )
    architectures = ops.build_info()["cuda_architectures"].count("-real")
    assert Counter(kind(name) for name, *_ in usage) == {
        name: count * architectures for name, count in KERNELS.items()
    }
    for name, registers, stack, _, local in usage:
        assert int(registers) <= MOST_REGISTERS.get(kind(name), 64), name
        assert int(stack) == 0 and int(local) == 0


def test_vector_kernels_move_16_bytes_at_a_time(cuobjdump):
    listing = functions(cuobjdump("-sass", "-arch", "sm_90"))
    assert {kind(name) for name in listing} == set(KERNELS)
    streams = {"step_kernel": 3, "l1_kernel": 2, "l2_step_kernel": 3, "apgd_linf_step_kernel": 4}
    streams |= {"apgd_l2_step_kernel": 4}
    for name, text in listing.items():
        assert not re.search(r"\b(LDL|STL)\b", text), "a vector lives in local memory"
        vectors = re.search(r"Lb1", name.split("_kernelI")[-1][:14]) is not None
        if kind(name) in streams:
            loads = len(re.findall(r"LDG?\.E\.128", text))
            assert (loads >= streams[kind(name)]) if vectors else loads == 0, name
            if kind(name) != "apgd_l2_step_kernel":  # nvcc splits its stores in 16-bit types
                assert (len(re.findall(r"STG?\.E\.128", text)) >= 1) == vectors, name


def test_the_lora_backward_is_on_tensor_cores(cuobjdump):
    """A matrix instruction for each tile, fed by 16-byte loads where a lane takes 8 columns."""
    names = {"lora_inner_outer": 0}
    for name, text in functions(cuobjdump("-sass", "-arch", "sm_80")).items():
        if kind(name) in names:
            names[kind(name)] += 1
            tiles = int(re.search(r"ELi(\d)E", name)[1])
            assert len(re.findall(r"HMMA\.16816\.F32", text)) >= 8 * tiles, name
            assert len(re.findall(r"LDG?\.E\.128", text)) >= 4, name
    assert names == {"lora_inner_outer": 6}


def test_the_arithmetic_is_not_contracted(cuobjdump):
    """Apart from address arithmetic (IMAD) nothing is fused: results would differ from the CPU."""
    for name, text in functions(cuobjdump("-sass", "-arch", "sm_90")).items():
        assert kind(name) in DIVIDES or "FFMA" not in text, name
