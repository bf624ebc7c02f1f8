"""The kernels' own programs under AddressSanitizer, UndefinedBehaviorSanitizer, ThreadSanitizer.

`run_cpu` drives every CPU kernel, with clones where the sanitizer can live with them, `run_cuda`,
`run_l2` and `run_cuda_lora` the emulated CUDA kernels, `run_far` their indices in large tensors. A
planted mistake has to be noticed.
"""

import shutil
import subprocess
from pathlib import Path

import pytest
from building import CSRC, EMULATOR, HERE, compiled, cpu_sources

ADDRESS = ("-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all")
THREADS = ("-fsanitize=thread", "-DRF_STD_THREADS", "-DRF_NO_DISPATCH")
SMALL = ("-DRF_NO_DISPATCH", "-DRF_MAX_BLOCKS=4", "-DRF_THREADS=64", "-DRF_TEAM_SHARE=512")
EMULATED = (*ADDRESS, *SMALL)
# AddressSanitizer would touch its shadow of all of the memory, and there is nothing to step over.
LARGE = ("-fsanitize=undefined", "-fno-sanitize-recover=all", *SMALL)
PROGRAMS = {
    "cpu, address": (HERE / "sanitizers" / "run_cpu.cpp", (*ADDRESS, "-fopenmp")),
    "cpu, threads": (HERE / "sanitizers" / "run_cpu.cpp", THREADS),
    "cuda, L1 and starts": (HERE / "sanitizers" / "run_cuda.cpp", EMULATED),
    "cuda, L2, APGD and FAB": (EMULATOR / "run_l2.cpp", EMULATED),
    "cuda, LoRA": (
        HERE / "sanitizers" / "run_cuda_lora.cpp",
        (*ADDRESS, "-DRF_NO_DISPATCH", "-DRF_MAX_BLOCKS=8"),
    ),
    "cuda, large": (EMULATOR / "run_far.cpp", LARGE),
    "cuda, large, L1": (EMULATOR / "run_far_l1.cpp", LARGE),
}
OVERFLOW = "heap-buffer-overflow"
PLANTED = [  # program, file, code, mistake, and what is said of it
    (
        "cpu, address",
        "cpu/l2.cpp",
        "i + kLanes <= n; i += kLanes",
        "i < n; i += kLanes",
        OVERFLOW,
    ),
    (
        "cpu, threads",
        "cpu/parallel.h",
        "std::min(begin + share, n)",
        "std::min(begin + share + 1, n)",
        "data race",
    ),
    (
        "cuda, L1 and starts",
        "cuda/random_start.cu",
        "if (element >= call.per_sample)",
        "if (element > call.per_sample)",
        OVERFLOW,
    ),
    (
        "cuda, L2, APGD and FAB",
        "cuda/packs.cuh",
        "for (at = end + thread; at < length",
        "for (at = end + thread; at <= length",
        OVERFLOW,
    ),
    (
        "cuda, L2, APGD and FAB",
        "cuda/sums.cuh",
        "    team_sync();\n    joined = shared_of",
        "    __syncthreads();\n    joined = shared_of",
        "fab_step",
    ),
    (
        "cuda, large",
        "cuda/l2.cu",
        "sample * call.per_sample,\n        {call.x_adv, call.x, call.grad ?",
        "static_cast<unsigned>(sample * call.per_sample),\n"
        "        {call.x_adv, call.x, call.grad ?",
        "l2_step differs",
    ),
    (
        "cuda, large, L1",
        "cuda/random_start.cu",
        "const int64_t base = sample",
        "const unsigned base = sample",
        "random_start differs",
    ),
    (
        "cpu, address",
        "cpu/lora.cpp",
        "std::min(kElements, end - at)",
        "kElements",
        OVERFLOW,
    ),
    (
        "cuda, LoRA",
        "cuda/lora.cu",
        "if (row < end && column < width)",
        "if (row <= end && column < width)",
        OVERFLOW,
    ),
]


def run(name: str, folder: Path, csrc: Path = CSRC) -> subprocess.CompletedProcess[str]:
    """Compile a program and run it."""
    source, flags = PROGRAMS[name]
    flags = ("-O1", "-g1", *flags)
    program = compiled(folder / "program", [source, *cpu_sources(csrc)], flags, csrc)
    # ThreadSanitizer does not cope with all the places where Linux may put a program.
    fixed = [shutil.which("setarch"), "-R"] if "threads" in name else [None]
    prefix = [str(part) for part in fixed if fixed[0]]
    return subprocess.run([*prefix, str(program)], capture_output=True, text=True, timeout=300)


@pytest.mark.sanitize
@pytest.mark.parametrize("name", PROGRAMS)
def test_nothing_is_found(name, tmp_path):
    done = run(name, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 differences" in done.stdout


def test_every_program_has_a_planted_mistake():
    assert {name for name, *_ in PLANTED} == PROGRAMS.keys()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "file", "code", "mistake", "symptom"),
    PLANTED,
    ids=[f"{name}, {Path(file).name}" for name, file, *_ in PLANTED],
)
def test_a_planted_mistake_is_found(name, file, code, mistake, symptom, tmp_path):
    csrc = tmp_path / "csrc"
    shutil.copytree(CSRC, csrc)
    text = (csrc / file).read_text()
    assert code in text
    (csrc / file).write_text(text.replace(code, mistake))
    done = run(name, tmp_path, csrc)
    assert done.returncode != 0 and symptom in done.stdout + done.stderr
