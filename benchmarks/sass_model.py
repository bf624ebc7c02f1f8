"""How near to a copy of its bytes a CUDA kernel can come, predicted from its machine code alone.

    python benchmarks/sass_model.py          # needs _C with CUDA kernels and cuobjdump, no GPU

Everything printed is a PREDICTION. The model: a kernel takes as long as the slowest of

- memory: the bytes that it moves, at the rate of a copy;
- waiting: what its threads have asked for when they begin to wait, once a latency;
- issue: the instructions of its main loop, at what each kind of unit takes in a clock.

Assumed are the numbers of `DEVICE`, full occupancy by registers, and that all three overlap. What a
block does outside its loop, the launches of small kernels and the tail of a grid are left out: a
measurement comes out lower.
"""

import importlib
import os
import re
import shutil
import subprocess
from collections import Counter
from importlib import util
from pathlib import Path
from typing import NamedTuple


class Device(NamedTuple):
    """What is assumed of a GPU."""

    name: str
    units: int  # streaming multiprocessors
    clock: float  # Hz
    copy: float  # bytes read and written in a second by a copy
    latency: float  # seconds until memory answers under load
    registers: int  # of a unit
    threads: int  # that a unit can hold


DEVICE = Device("H200 (assumed)", 132, 1.755e9, 4.3e12, 0.8e-6, 65536, 2048)
ARCHITECTURE = "sm_90"

RATES = {"issue": 4.0, "alu": 2.0, "fp64": 2.0, "convert": 0.5, "memory": 1.0}
"""Instructions of a warp that the units of each kind take in a clock of an SM (sm_90)."""

_ALU = r"IADD|LOP|SHF|SEL|FSEL|ISETP|FSETP|FMNMX|IMNMX|VIMNMX|PRMT|LEA|IABS|FSET|PLOP|POPC|MOV"
_KINDS = {
    "convert": re.compile(r"MUFU|F2F|I2F|F2I|F2FP"),
    "fp64": re.compile(r"D(ADD|MUL|FMA|SETP)|DMNMX"),
    "memory": re.compile(r"LDG|STG|LDS|STS|LD\b|ST\b|ATOMS|SHFL"),
    "alu": re.compile(_ALU),
}


class Instruction(NamedTuple):
    """One line of machine code."""

    place: int
    code: str  # with its modifiers: LDG.E.128
    operands: tuple[str, ...]

    @property
    def is_wide_load(self) -> bool:
        """Whether it reads 16 bytes from global memory."""
        return re.fullmatch(r"LDG?\.E(\..*)?\.128(\..*)?", self.code) is not None

    def loaded(self) -> set[int]:
        """Numbers of the registers that a wide load fills."""
        first = re.match(r"R(\d+)", self.operands[0])
        return set(range(int(first[1]), int(first[1]) + 4)) if first else set()

    def reads(self) -> set[int]:
        """Numbers of the registers that it needs, addresses too."""
        keeps = self.code.startswith(("ST", "RED", "ATOM"))  # no register is written
        found = " ".join(self.operands[0 if keeps else 1 :])
        registers = {int(n) for n in re.findall(r"\bR(\d+)", found)}
        wide = re.search(r"\.(64|128)\b", self.code) if keeps else None
        if wide and (value := re.match(r"R(\d+)", self.operands[-1])):
            registers |= set(range(int(value[1]), int(value[1]) + int(wide[1]) // 32))
        return registers


def programs() -> str:
    """PATH with the folders where NVIDIA's Python packages put cuobjdump and nvdisasm."""
    packages = util.find_spec("nvidia")
    folders = packages.submodule_search_locations if packages else None
    places = [str(place) for folder in folders or [] for place in Path(folder).glob("cu*/bin")]
    return os.pathsep.join([*places, os.environ.get("PATH", "")])


def cuobjdump(file: Path, *options: str) -> str:
    """What cuobjdump prints of a module. Raises FileNotFoundError where it is not installed."""
    path = programs()
    command = [shutil.which(name, path=path) for name in ("cuobjdump", "nvdisasm")]
    if not all(command):
        raise FileNotFoundError("cuobjdump or nvdisasm (pip install '.[test]')")
    done = subprocess.run(
        [str(command[0]), *options, str(file)],
        env=os.environ | {"PATH": path},  # where cuobjdump looks for nvdisasm
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def functions(listing: str) -> list[tuple[str, str]]:
    """(mangled name, what cuobjdump prints of it); a kernel of two files comes twice."""
    parts = re.split(r"Function : ?", listing)[1:]
    return [(part.split()[0].strip(":"), part) for part in parts]


def instructions(text: str) -> list[Instruction]:
    """The code of one function, without the padding at its end."""
    found = []
    for place, code in re.findall(r"/\*([0-9a-f]{4,})\*/\s+([^;/]+);", text):
        code = re.sub(r"^@!?U?P\w+\s+", "", code.strip())
        name, _, operands = code.partition(" ")
        found.append(Instruction(int(place, 16), name, tuple(operands.replace(" ", "").split(","))))
    while found and found[-1].code in ("NOP", "BRA"):
        found.pop()
    return found


def loops(code: list[Instruction]) -> list[list[Instruction]]:
    """What lies between a jump back and its target, innermost loops alone."""
    spans = []
    for one in code:
        target = re.fullmatch(r"0x([0-9a-f]+)", one.operands[-1]) if "BRA" in one.code else None
        if target and int(target[1], 16) <= one.place:
            spans.append((int(target[1], 16), one.place))
    inner = [s for s in spans if not any(s != o and s[0] <= o[0] and o[1] <= s[1] for o in spans)]
    return [[one for one in code if low <= one.place <= high] for low, high in inner]


def main_loop(code: list[Instruction]) -> list[Instruction]:
    """The innermost loop with the most wide loads."""
    return max(loops(code), key=lambda loop: sum(one.is_wide_load for one in loop), default=[])


def clocks(loop: list[Instruction]) -> float:
    """Of a multiprocessor, for one warp: what the busiest kind of unit needs."""
    kinds = Counter({"issue": len(loop)})
    for one in loop:
        kinds.update(kind for kind, pattern in _KINDS.items() if pattern.match(one.code))
    return max(count / RATES[kind] for kind, count in kinds.items())


class Traffic(NamedTuple):
    """What a launch of an op moves: tensors that each of its kernels reads and writes."""

    kernels: dict[str, tuple[int, int]]
    least: int  # tensors that the op has to read and write


TRAFFIC = {
    "linf_step_": Traffic({"step_kernel": (3, 1)}, 4),
    "apgd_linf_step_": Traffic({"apgd_linf_step_kernel": (4, 1)}, 5),
    "l2_step_": Traffic({"sum_kernel": (3, 0), "l2_step_kernel": (3, 1)}, 4),
    "apgd_l2_step_": Traffic(
        {"sum_kernel": (3, 0), "apgd_l2_length_kernel": (4, 0), "apgd_l2_step_kernel": (4, 1)}, 5
    ),
    "select_best_": Traffic({"copy_kernel": (2, 2)}, 4),
}
"""Ops of a few passes; searches (L1, FAB) and products (LoRA) depend on more than their code."""
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


class Prediction(NamedTuple):
    """Of one op in one storage type."""

    op: str
    dtype: str
    share: float  # of the rate of a copy, for the bytes that the op's kernels move
    of_least: float  # the same for the bytes that no way of computing it could do without
    bound: str  # what the slowest kernel is bound by


def _seconds(code: list[Instruction], registers: int, streams: tuple[int, int], word: int) -> dict:
    """Of one kernel for one element, by what binds it."""
    loop = main_loop(code)
    loads = sum(one.is_wide_load for one in loop)
    elements = 32 * loads / streams[0] * (16 // word)  # of a warp in one round of the loop
    resident = min(DEVICE.threads, DEVICE.registers // max(registers, 32) // 256 * 256)
    asked = DEVICE.units * resident * loads * 16 / DEVICE.latency
    return {
        "memory": sum(streams) * word / DEVICE.copy,
        "waiting": streams[0] * word / asked,
        "issue": clocks(loop) / (DEVICE.clock * DEVICE.units * elements),
    }


def predictions(module: Path | None = None) -> list[Prediction]:
    """For every op of `TRAFFIC` in every storage type, from the module's code for `ARCHITECTURE`.

    Raises FileNotFoundError without cuobjdump; empty where the module has no such code.
    """
    module = module or Path(str(importlib.import_module("roli_fast._C").__file__))
    options = ("-arch", ARCHITECTURE)
    code = {n: instructions(t) for n, t in functions(cuobjdump(module, "-sass", *options))}
    usage = re.findall(r"Function (\S+):\s+REG:(\d+)", cuobjdump(module, "-res-usage", *options))
    registers = {name: int(count) for name, count in usage}

    def one(kernel: str, dtype: str) -> str | None:
        kind = rf"\d{kernel}I" + (
            "5uint4E" if kernel == "copy_kernel" else f".*{dtype.title()}ELb1"
        )
        return next((name for name in code if re.search(kind, name)), None)

    found = []
    for op, (kernels, least) in TRAFFIC.items():
        for dtype, word in BYTES.items():
            names = {kernel: one(kernel, dtype) for kernel in kernels}
            times = [
                _seconds(code[name], registers[name], kernels[kernel], word)
                for kernel, name in names.items()
                if name is not None
            ]
            if len(times) < len(kernels):
                continue
            slowest = max(times, key=lambda by: max(by.values()))
            total = sum(max(by.values()) for by in times)
            moved = sum(by["memory"] for by in times)
            of_least = least * word / DEVICE.copy / total
            bound = max(slowest, key=lambda kind: slowest[kind])
            found.append(Prediction(op, dtype, moved / total, of_least, bound))
    return found


if __name__ == "__main__":
    print(f"PREDICTED, not measured: share of the rate of a copy, {DEVICE}")
    print(f"{'op':18}{'dtype':8}{'of its bytes':>14}{'of the least':>14}  bound by")
    for row in predictions():
        print(f"{row.op:18}{row.dtype:8}{row.share:14.0%}{row.of_least:14.0%}  {row.bound}")
