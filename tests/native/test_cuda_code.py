"""Facts about the compiled CUDA kernels, read from the module without a GPU."""

import os
import re
import shutil
import subprocess
from collections import Counter
from importlib import util
from pathlib import Path

import pytest
from building import missing

from roli_fast import ops

# Three storage types, with and without vectors; l1_kernel also with and without a step, and
# fab_step_kernel in three norms. A name that holds another comes first.
KERNELS = {
    "apgd_linf_step_kernel": 6,
    "apgd_l2_length_kernel": 6,
    "apgd_l2_step_kernel": 6,
    "l2_step_kernel": 6,
    "sum_kernel": 6,
    "fab_step_kernel": 18,
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
REDUCING = (
    "apgd_l2_length_kernel",
    "apgd_l2_step_kernel",
    "l2_step_kernel",
    "fab_step_kernel",
    "sum_kernel",
)
MOST_REGISTERS = {"l1_kernel": 128, "lora_inner_outer": 128} | dict.fromkeys(REDUCING, 80)
DIVIDES = ("l1_kernel", "start_kernel", "start_totals", *REDUCING[:4])
"""Exact divisions and roots are made of fused instructions themselves."""


STREAMS = {
    "apgd_linf_step_kernel": (4, 1),
    "apgd_l2_length_kernel": (4, 0),
    "apgd_l2_step_kernel": (4, 1),
    "l2_step_kernel": (3, 1),
    "sum_kernel": (3, 0),
    "fab_step_kernel": (3, 1),
    "copy_kernel": (2, 2),
    "step_kernel": (3, 1),
    "l1_kernel": (2, 1),
    "start_kernel": (1, 1),
    "decide_kernel": (0, 0),  # a loss a sample
    "start_totals": (0, 0),  # reads nothing, adds up one number a sample
    "lora_dropout_kernel": (1, 1),
}
"""Tensors that a kernel reads, and writes, element by element: 16 bytes at a time if by vectors."""
TILED = {"lora_inner_outer", "lora_reduce", "lora_merge_kernel"}
"""Kernels over tiles of matrices, not over streams of elements."""
EXEMPT = {
    ("start_kernel", "loads"): ("Bf16", "Fp16"),  # four elements of a Philox counter: 8 bytes
    ("start_kernel", "stores"): ("Fp32", "Bf16", "Fp16"),  # the same, and nvcc splits those of fp32
    ("apgd_l2_step_kernel", "stores"): ("Bf16", "Fp16"),  # nvcc splits them
    ("lora_dropout_kernel", "loads"): ("kernelIt",),  # 16 bits: four elements of a Philox counter
    ("lora_dropout_kernel", "stores"): ("kernelIt",),
}


@pytest.fixture
def cuobjdump(module_file):
    """Run cuobjdump on the module; skipped without CUDA kernels."""
    if ops.build_info()["cuda"] is None:
        pytest.skip("the module was built without CUDA")
    places = [*map(str, cuda_packages()), os.environ.get("PATH", "")]
    path = os.pathsep.join(places)
    found = [shutil.which(name, path=path) for name in ("cuobjdump", "nvdisasm")]
    if not all(found):
        missing("cuobjdump or nvdisasm is not installed (pip install '.[test]')")
    command = str(found[0])

    def run(*options: str) -> str:
        done = subprocess.run(
            [command, *options, str(module_file)],
            env=os.environ | {"PATH": path},  # where cuobjdump looks for nvdisasm
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def cuda_packages() -> list[Path]:
    """Where NVIDIA's Python packages put programs."""
    packages = util.find_spec("nvidia")
    folders = packages.submodule_search_locations if packages else None
    return [place for folder in folders or [] for place in Path(folder).glob("cu*/bin")]


def functions(listing: str) -> list[tuple[str, str]]:
    """(mangled name, what cuobjdump prints of it); a kernel of two files comes twice."""
    parts = re.split(r"Function : ?", listing)[1:]
    return [(part.split()[0].strip(":"), part) for part in parts]


def kind(name: str) -> str:
    """The kernel's name without template arguments."""
    return next(known for known in KERNELS if known in name)


def by_vectors(name: str) -> bool:
    """Whether this is a kernel's variant for aligned samples: its second argument, or uint4."""
    return "Lb1" in name.split("_kernelI")[-1][:14] or "uint4" in name


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
        assert int(stack) == 0 and int(local) == 0, name


def test_vector_kernels_move_16_bytes_at_a_time(cuobjdump):
    listing = functions(cuobjdump("-sass", "-arch", "sm_90"))
    assert Counter(kind(name) for name, _ in listing) == KERNELS
    assert set(KERNELS) - set(STREAMS) == TILED
    for name, text in listing:
        assert not re.search(r"\b(LDL|STL)\b", text), f"{name}: a vector lives in local memory"
        if kind(name) in TILED:
            continue
        moved = {"loads": r"LDG?\.E\.128", "stores": r"STG?\.E\.128"}
        for least, (what, code) in zip(STREAMS[kind(name)], moved.items(), strict=True):
            count = len(re.findall(code, text))
            if not by_vectors(name):
                assert count == 0, name
            elif not any(one in name for one in EXEMPT.get((kind(name), what), ())):
                assert count >= least, (name, what)


def test_the_lora_backward_is_on_tensor_cores(cuobjdump):
    """A matrix instruction for each tile, fed by 16-byte loads where a lane takes 8 columns."""
    names = {"lora_inner_outer": 0}
    for name, text in functions(cuobjdump("-sass", "-arch", "sm_80")):
        if kind(name) in names:
            names[kind(name)] += 1
            tiles = int(re.search(r"ELi(\d)E", name)[1])
            assert len(re.findall(r"HMMA\.16816\.F32", text)) >= 8 * tiles, name
            assert len(re.findall(r"LDG?\.E\.128", text)) >= 4, name
    assert names == {"lora_inner_outer": 6}


def test_the_arithmetic_is_not_contracted(cuobjdump):
    """Apart from address arithmetic (IMAD) nothing is fused: results would differ from the CPU."""
    for name, text in functions(cuobjdump("-sass", "-arch", "sm_90")):
        assert kind(name) in DIVIDES or "FFMA" not in text, name
