"""What needs a GPU, step by step, the most valuable first: each in a process of its own with a
limit of its own, all of it in one log and one JSON file, benchmarks/results/<device>.json.

    benchmarks/gpu.sh [--limit SECONDS] [--steps NAME,...] [--again] [--rehearse]

A second call goes on with the steps that the first did not reach. It needs Python, torch,
torchvision, timm, numpy, scipy, safetensors, PyYAML, pytest, pybind11, cmake, ninja and nvcc, and
no network. Where $OUT is set, log and JSON are copied there as well.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import torch

from harness import bare
from harness.report import RESULTS, Options, Report, line, machine, target_line

ROOT = Path(__file__).resolve().parent.parent
RESERVE = 12.0  # seconds of the whole limit that are left for the table
LEAST = 10.0  # with less time than this no step begins
PATIENCE = 8.0  # seconds from the interrupt, after which pytest says what failed, to the kill

RECORDED = "tests/engine/test_cuda_graph.py::TestOnADevice::test_a_"
BREAKING = f"{RECORDED}failure_leaves_nothing_behind[Synchronizing]"
COMPILED = f"{RECORDED}compiled_model_is_recorded"
PROCESSES = "tests/train/test_several_processes.py"
KERNELS = "kns=2rf4cuda"  # what the names of our kernels hold


@dataclass(frozen=True)
class Setup:
    """Where the steps run.

    Args:
        device: "cuda", or "cpu" in a rehearsal.
        folder: where log and JSON go.
        name: of the JSON file.
        environment: variables of the steps, beside this process's own.
    """

    device: str
    folder: Path
    name: str
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def rehearsed(self) -> bool:
        """Whether the steps run on the CPU, tiny."""
        return self.device == "cpu"

    @property
    def result(self) -> Path:
        """The JSON file."""
        return self.folder / f"{self.name}.json"

    @property
    def log(self) -> Path:
        """What all steps print."""
        return self.folder / f"{self.name}.log"

    def part(self, step: str) -> Path:
        """Where a measuring step keeps what it has found so far."""
        return self.folder / f"{self.name}.{re.sub(r'[^a-z0-9]+', '-', step.lower())}.part.json"


@dataclass(frozen=True)
class Step:
    """A command with a limit in seconds; `measures` where it leaves rows and targets."""

    name: str
    limit: float
    command: Callable[[Setup], list[str]]
    measures: bool = False
    environment: dict[str, str] = field(default_factory=dict)


def tests(*arguments: str) -> Callable[[Setup], list[str]]:
    """The gpu tests among these; without a GPU they are collected, imported and skipped."""
    return lambda setup: [sys.executable, "-m", "pytest", "-q", "-m", "gpu", *arguments]


def measured(name: str, limit: float, group: str, cases: str = "", scale: float = 0.15) -> Step:
    """Some cases of a group of benchmarks, or all of them, without pytest-benchmark."""
    command = [sys.executable, __file__, f"--measure={group}/{cases}", f"--scale={scale}"]

    def made(setup: Setup) -> list[str]:
        return [*command, f"--device={setup.device}", f"--part={setup.part(name)}"]

    return Step(name, limit, made, measures=True)


def build(setup: Setup) -> list[str]:
    """The kernels for this device alone; a rehearsal leaves the compiled ones as they are."""
    where = ["--inplace"]
    if setup.rehearsed:
        where = [f"--build-lib={setup.folder}/lib", f"--build-temp={setup.folder}/temp"]
    return [sys.executable, "setup.py", "-q", "build_ext", *where]


def memcheck(setup: Setup) -> list[str]:
    """The kernels' tests under compute-sanitizer, our kernels alone; without torch's cache nothing
    can be captured."""
    tool = [] if setup.rehearsed else ["compute-sanitizer", "--tool", "memcheck"]
    tool += [] if setup.rehearsed else ["--error-exitcode", "9", "--kernel-name", KERNELS]
    return [*tool, *tests("tests/native", "-k", "not graph and not captured")(setup)]


# without torch's cache each tensor is an allocation of its own, whose ends memcheck knows
UNCACHED = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
STEPS = (
    Step("build", 120, build),
    Step("native", 60, tests("tests/native")),
    measured("ops", 60, "kernels", "ops"),
    measured("attack", 45, "gpu", "attack"),
    Step("engine", 60, tests("tests/engine", f"--deselect={BREAKING}", f"--deselect={COMPILED}")),
    measured("training", 45, "gpu", "LoRA training"),
    measured("targets", 60, "gpu", "graph,fused step,LoRA attack"),
    measured("layers", 25, "kernels", "LoRA layers"),
    Step("waiting", 45, tests("tests/train", "tests/data", f"--ignore={PROCESSES}")),
    Step("breaking", 30, tests(BREAKING)),
    measured("profile", 45, "kernels", "profile"),
    Step("memcheck", 75, memcheck, environment=UNCACHED),
    Step("processes", 45, tests(PROCESSES)),
    Step("inductor", 90, tests(COMPILED)),
    measured("compiled", 150, "gpu", "compiled"),
    measured("pgd", 60, "pgd"),
    measured("full", 40, "gpu", "full training"),
)
"""`breaking` stands alone: where it goes wrong, nothing after it works in its process."""

PASSED, FAILED, SLOW, LATER = "passed", "failed", "too slow", "not reached"


class Run:
    """All steps, and what is known of them from this call and earlier ones."""

    def __init__(self, setup: Setup, steps: tuple[Step, ...], limit: float) -> None:
        self.setup, self.steps = setup, steps
        self.end = time.monotonic() + limit
        self.found: dict[str, Any] = {"machine": {}, "steps": {}}
        if setup.result.exists():
            self.found = json.loads(setup.result.read_text(encoding="utf-8"))

    def known(self, step: Step) -> bool:
        """Whether an earlier call did it; what that built must be there still."""
        module = ROOT / "roli_fast" / f"_C{EXTENSION_SUFFIXES[0]}"
        built = step.name != "build" or module.exists()
        return self.found["steps"].get(step.name, {}).get("status", LATER) != LATER and built

    def all(self, names: set[str], *, again: bool) -> bool:
        """Run what is to be run, in order; whether nothing failed or is left."""
        for step in self.steps:
            wanted = step.name in names if names else again or not self.known(step)
            if wanted:
                self.one(step)
        self.save()
        print(self.table(), flush=True)
        own = [self.found["steps"].get(s.name, {"status": LATER})["status"] for s in self.steps]
        return all(status == PASSED for status in own)

    def one(self, step: Step) -> None:
        """Run a step, and keep what came of it."""
        setup, left = self.setup, self.end - time.monotonic() - RESERVE
        full = step.limit * (5 if setup.rehearsed else 1)  # on whatever CPU
        limit = min(full, left)
        if limit < min(LEAST, full):
            self.found["steps"].setdefault(step.name, {"status": LATER, "said": []})
            return
        print(f"== {step.name}: at most {limit:.0f} s", flush=True)
        started, part = time.monotonic(), setup.part(step.name)
        part.unlink(missing_ok=True)
        with setup.log.open("ab") as log:
            log.write(f"\n== {step.name}\n".encode())
            log.flush()
            begun = log.tell()
            code = ended(step.command(setup), limit, log, setup.environment | step.environment)
        seconds = time.monotonic() - started
        text = setup.log.read_bytes()[begun:].decode(errors="replace")
        status = PASSED if code == 0 else FAILED
        if code is None:
            status = SLOW if limit >= full else LATER
        row = {"status": status, "seconds": round(seconds, 1), "said": said(text, status)}
        if part.exists():
            measures = json.loads(part.read_text(encoding="utf-8"))
            row |= {key: value for key, value in measures.items() if key not in ("machine", "case")}
            self.found["machine"] = measures["machine"]
            part.unlink()
        elif not step.measures and not setup.rehearsed and step.command is not build:
            if status == PASSED and not re.search(r"\d+ passed", text):  # all were skipped
                row["status"] = FAILED
        self.found["steps"][step.name] = row
        print("\n".join(f"   {entry}" for entry in row["said"]), flush=True)
        print(f"== {step.name}: {row['status']} after {seconds:.0f} s", flush=True)
        self.save()

    def save(self) -> None:
        """Write the JSON file, and copy it and the log where $OUT says."""
        text = json.dumps(self.found, indent=1) + "\n"
        self.setup.result.write_text(text, encoding="utf-8")
        if os.environ.get("OUT"):
            for path in (self.setup.result, self.setup.log):
                shutil.copy(path, os.environ["OUT"])

    def table(self) -> str:
        """What was measured, the targets, and a line for each step."""
        device = self.found["machine"].get("device", "nothing measured")
        done = {step.name: self.found["steps"].get(step.name, {}) for step in self.steps}
        lines = ["", device]
        for name, row in done.items():
            lines += [line(name, entry) for entry in row.get("rows", ())]
        lines += ["", "targets"]
        for name, row in done.items():
            lines += [target_line(name, goal) for goal in row.get("targets", ())]
        lines += ["", "steps"]
        for name, row in done.items():
            last = (row.get("said") or [""])[-1]
            took = f"{row.get('seconds', 0):.0f} s"
            lines.append(f"{name:10} {row.get('status', LATER):12} {took:>6}  {last[:90]}")
        return "\n".join(lines)


def ended(command: list[str], limit: float, log: Any, environment: dict[str, str]) -> int | None:
    """The exit status of a command; None if it took longer, and was interrupted, then killed."""
    paths = os.pathsep.join(filter(None, (environment.get("PYTHONPATH"), str(ROOT))))
    environment = {**os.environ, **environment, "PYTHONPATH": paths}
    try:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
            # a shell's background jobs ignore it, and hand that on
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    except FileNotFoundError as error:
        log.write(f"{error}\n".encode())
        return 127
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE)
        return None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def said(text: str, status: str) -> list[str]:
    """The lines of a step's output to keep: failed tests and the last one, more of what failed."""
    lines = [entry for entry in text.splitlines() if entry.strip()]
    failures = [entry for entry in lines if entry.startswith(("FAILED", "ERROR"))]
    return [*failures, *lines[-1 if status == PASSED else -15 :]]


def measure(place: str, options: Options, part: Path) -> None:
    """The cases of a group into a report; one that fails does not stop the next."""
    group, _, some = place.partition("/")
    report, failed = Report(group, options, part), 0
    cases = import_module(f"groups.{group}").CASES
    for name in some.split(",") if some else cases:
        try:
            cases[name](report)
        except Exception as error:
            failed += 1
            report.add_row({"case": name, "name": "-", "note": f"failed: {error!r}"[:300]})
            sys.excepthook(type(error), error, error.__traceback__)
        report.save()
    if failed or report.extra.get("failed"):
        raise SystemExit(1)


def setup_here(rehearse: bool, folder: Path | None) -> Setup | None:
    """Where the steps run on this machine; None without a device that torch can use."""
    if rehearse:
        folder = folder or Path(tempfile.mkdtemp(prefix="rehearsal-"))
        seen = {**bare.environment(folder / "site"), "ROLI_FAST_BUILD": "none"}
        return Setup("cpu", folder, "rehearsal", {**seen, "CUDA_VISIBLE_DEVICES": ""})
    if not torch.cuda.is_available():
        return None
    name = re.sub(r"[^a-z0-9.]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    architecture = "{}.{}".format(*torch.cuda.get_device_capability())
    seen = {"ROLI_FAST_BUILD": "cuda", "ROLI_FAST_CUDA_ARCHS": architecture}
    return Setup("cuda", folder or RESULTS, name, seen)


def main(arguments: list[str] | None = None) -> int:
    """The command line; 1 if a step failed or is left."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--limit", type=float, help="seconds of this call, 290")
    parser.add_argument("--steps", default="", help="these alone, by name, also done ones")
    parser.add_argument("--again", action="store_true", help="all steps, whatever was done before")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, tiny")
    parser.add_argument("--out", type=Path, help="folder of log and JSON")
    for name in ("measure", "device", "scale", "part"):  # what a step is called with
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.measure:
        quick = given.device == "cpu"
        options = Options(device=given.device, quick=quick, scale=float(given.scale))
        torch.set_num_threads(1) if quick else None
        measure(given.measure, options, Path(given.part))
        return 0
    setup = setup_here(given.rehearse, given.out)
    if setup is None:
        print("no CUDA device that torch can use: nothing was run; --rehearse runs it on the CPU")
        return 0
    names = set(filter(None, given.steps.split(",")))
    if unknown := names - {step.name for step in STEPS}:
        parser.error(f"--steps: no such step: {', '.join(sorted(unknown))}")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where a shell ignores it
    setup.folder.mkdir(parents=True, exist_ok=True)
    run = Run(setup, STEPS, given.limit or (1800 if given.rehearse else 290))
    run.found["machine"] = run.found["machine"] or machine(setup.device, 1)
    return 0 if run.all(names, again=given.again) else 1


if __name__ == "__main__":
    sys.exit(main())
