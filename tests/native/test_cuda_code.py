"""Facts about the compiled CUDA kernels, read from the module without a GPU."""

import importlib
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from building import missing

import sass_model
from roli_fast import ops

# Three storage types, with and without vectors; l1_kernel also with and without a step, and
# fab_step_kernel in three norms. A name that holds another comes first.
KERNELS = {
    "apgd_linf_step_kernel": 6,
    "apgd_l2_length_kernel": 6,
    "apgd_l2_step_kernel": 6,
    "l2_scale_kernel": 3,  # of a step, of APGD's step, and APGD's last
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
# Sums in fp64, or four packs of three tensors: 3 blocks of 256 threads. Else 4 of them.
WIDE = (
    "apgd_l2_length_kernel",
    "apgd_l2_step_kernel",
    "l2_scale_kernel",
    "l2_step_kernel",
    "fab_step_kernel",
    "sum_kernel",
    "l1_kernel",
)
MOST_REGISTERS = dict.fromkeys(WIDE, 80)
MOST_REGISTERS |= dict.fromkeys(("l1_kernel", "l2_step_kernel", "fab_step_kernel"), 128)
# 128 to sm_90; on sm_100 and sm_120 ptxas takes up to 244, and spills if it may not
MOST_REGISTERS |= {"lora_inner_outer": 255}
DIVIDES = ("l1_kernel", "start_kernel", "start_totals", "l2_scale_kernel", "fab_step_kernel")
"""Exact divisions and roots are made of fused instructions themselves."""


STREAMS = {
    "apgd_linf_step_kernel": (4, 1),
    "apgd_l2_length_kernel": (4, 0),
    "apgd_l2_step_kernel": (4, 1),
    "l2_scale_kernel": (0, 0),  # a few numbers a sample
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
AT_ONCE = {
    "step_kernel": 3,
    "apgd_linf_step_kernel": 4,
    "sum_kernel": 6,
    "l2_step_kernel": 8,
    "apgd_l2_length_kernel": 4,
    "apgd_l2_step_kernel": 8,
    "copy_kernel": 4,
    "l1_kernel": 2,
    "fab_step_kernel": 4,
}
"""16-byte loads of a kernel before the first use of any of them: those of a pack at least.
The sums and l2 ask for up to four packs; ptxas begins to use the first ones earlier, in 16 bits."""
ELEMENTWISE = ("step_kernel", "apgd_linf_step_kernel", "l2_step_kernel", "apgd_l2_length_kernel")
ELEMENTWISE += ("apgd_l2_step_kernel", "sum_kernel", "copy_kernel")
MOST_BEFORE = 150
"""Instructions of an elementwise kernel before its first 16-byte load."""


@pytest.fixture(scope="module")
def cuobjdump():
    """Run cuobjdump on the module; skipped without CUDA kernels."""
    if ops.backend("linf_step_", "cpu", torch.float32).name == "reference":
        missing("there are no compiled kernels")
    if ops.build_info()["cuda"] is None:
        pytest.skip("the module was built without CUDA")
    file = Path(str(importlib.import_module("roli_fast._C").__file__))

    def run(*options: str) -> str:
        try:
            return sass_model.cuobjdump(file, *options)
        except FileNotFoundError as error:
            missing(f"{error} is not installed")

    return run


@pytest.fixture(scope="module")
def listing(cuobjdump) -> list[tuple[str, str]]:
    """(mangled name, machine code) of every kernel for sm_90."""
    return sass_model.functions(cuobjdump("-sass", "-arch", "sm_90"))


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


def test_vector_kernels_move_16_bytes_at_a_time(listing):
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


def test_a_thread_waits_for_memory_once(listing):
    """All loads of what is worked on together come before the first use of one of them."""
    for name, text in listing:
        if kind(name) not in AT_ONCE or not by_vectors(name):
            continue
        loop = sass_model.main_loop(sass_model.instructions(text))
        asked, registers = 0, set()
        for one in loop:
            if one.is_wide_load:
                asked += 1
                registers |= one.loaded()
            elif registers & one.reads():
                break
        assert asked >= AT_ONCE[kind(name)], name


def test_little_comes_before_the_first_load(listing):
    """No integer division (a conversion to floating point), no barrier, few instructions."""
    for name, text in listing:
        if kind(name) not in ELEMENTWISE or not by_vectors(name):
            continue
        code = sass_model.instructions(text)
        first = next(place for place, one in enumerate(code) if one.is_wide_load)
        before = [one.code for one in code[:first]]
        assert not [c for c in before if c.startswith("BAR")], name
        assert len(before) <= MOST_BEFORE, (name, len(before))
        division = [one.code for one in code if re.match("I2F|CALL", one.code)]
        assert not division, (name, division)


def test_the_lora_backward_is_on_tensor_cores(listing):
    """A matrix instruction for each tile, fed by 16-byte loads where a lane takes 8 columns; and
    partial sums leave by 16 bytes."""
    names = {"lora_inner_outer": 0}
    for name, text in listing:
        if kind(name) in names:
            names[kind(name)] += 1
            tiles = int(re.search(r"ELi(\d)E", name)[1])
            assert len(re.findall(r"HMMA\.16816\.F32", text)) >= 8 * tiles, name
            assert len(re.findall(r"LDG?\.E\.128", text)) >= 4, name
            stores = set(re.findall(r"STG?\.E\S*", text))
            assert stores == {"STG.E.U16", "STG.E.128"}, (name, stores)
    assert names == {"lora_inner_outer": 6}


def test_the_arithmetic_is_not_contracted(listing):
    """Apart from address arithmetic (IMAD) nothing is fused: results would differ from the CPU."""
    for name, text in listing:
        assert kind(name) in DIVIDES or "FFMA" not in text, name


def test_the_model_by_hand():
    """A loop of two loads, eight additions of integers and a jump: 11 instructions at four a clock
    take 2.75, 8 additions at two a clock 4."""
    lines = ["LDG.E.128 R4, desc[UR4][R2.64]", "LDG.E.128 R8, desc[UR4][R2.64+0x10]"]
    lines += [f"IADD3 R12, R{4 + i}, R12, RZ" for i in range(8)] + ["@P0 BRA 0x0010"]
    lines = ["MOV R1, R2", *lines, "EXIT", "BRA 0x00d0", "NOP"]
    text = "\n".join(f"  /*{16 * i:04x}*/  {line} ;" for i, line in enumerate(lines))
    code = sass_model.instructions(text)
    loop = sass_model.main_loop(code)
    assert (len(code), len(loop), sass_model.clocks(loop)) == (13, 11, 4.0)
    assert loop[0].loaded() == {4, 5, 6, 7} and loop[2].reads() == {4, 12}
