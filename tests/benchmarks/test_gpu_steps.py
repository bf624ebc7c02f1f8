"""The run on a GPU: order and limits by commands that do nothing, and what a bare machine has."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from shared_data import REPOSITORY

import gpu_steps
from gpu_steps import FAILED, LATER, PASSED, SLOW, Run, Setup, Step
from harness import bare


def step(name: str, program: str, limit: float = 20.0) -> Step:
    return Step(name, limit, lambda _setup: ["sh", "-c", program])


def run(folder: Path, *steps: Step, limit: float = 60.0, names: Any = (), again=False) -> Any:
    """What the JSON file says of each step: status and last line."""
    made = Run(Setup("cpu", folder, "device"), steps, limit)
    made.all(set(names), again=again)
    found = json.loads((folder / "device.json").read_text())["steps"]
    return {name: (row["status"], row["said"][-1:]) for name, row in found.items()}


def test_each_step_has_a_limit_and_a_failed_one_stops_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    interrupted = "trap 'echo interrupted; exit 2' INT; while :; do sleep 0.05; done"
    found = run(
        tmp_path,
        step("fails", "echo FAILED a test; echo the end; exit 3"),
        step("hangs", interrupted, limit=2.0),
        step("passes", "echo 3 passed"),
        Step("absent", 20.0, lambda _setup: ["no-such-tool"]),
    )
    assert found == {
        "fails": (FAILED, ["the end"]),
        "hangs": (SLOW, ["interrupted"]),  # as pytest, which then says what failed before
        "passes": (PASSED, ["3 passed"]),
        "absent": (FAILED, ["[Errno 2] No such file or directory: 'no-such-tool'"]),
    }
    for name in ("device.json", "device.log"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / name).read_bytes()
    table = capsys.readouterr().out.split("\nsteps\n")[1].splitlines()
    assert [row.split()[0] for row in table] == ["fails", "hangs", "passes", "absent"]
    log = (tmp_path / "device.log").read_text()
    assert log.index("== fails") < log.index("FAILED a test") < log.index("== hangs")


def test_a_second_call_goes_on_where_the_first_one_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_steps, "RESERVE", 0.0)
    monkeypatch.setattr(gpu_steps, "LEAST", 0.2)
    counted = tmp_path / "counted"
    steps = [step("first", f"echo x >> {counted}"), step("second", "sleep 60", limit=50)]
    found = run(tmp_path, *steps, step("third", "true"), limit=2.0)
    assert [status for status, _ in found.values()] == [PASSED, LATER, LATER]
    steps[1] = step("second", "echo done")
    found = run(tmp_path, *steps, step("third", "false"))
    assert [status for status, _ in found.values()] == [PASSED, PASSED, FAILED]
    assert counted.read_text() == "x\n"
    found = run(tmp_path, *steps, step("third", "true"), names=["third"])
    assert found["third"] == (PASSED, []) and counted.read_text() == "x\n"
    run(tmp_path, *steps, again=True)
    assert counted.read_text() == "x\nx\n"


def test_tests_that_all_skip_on_a_device_have_not_passed(tmp_path: Path) -> None:
    there = Setup("cuda", tmp_path, "device")
    for program, status in (("echo 4 skipped", FAILED), ("echo 1 passed, 3 skipped", PASSED)):
        made = Run(there, (step("native", program),), 60)
        assert made.all(set(), again=True) is (status == PASSED)
        assert made.found["steps"]["native"]["status"] == status


def test_on_a_device_it_builds_for_it_and_keeps_its_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200 (MIG)")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(gpu_steps, "machine", lambda _device, _threads: {"device": "H200"})
    seen = "echo 1 passed, $ROLI_FAST_BUILD $ROLI_FAST_CUDA_ARCHS"
    monkeypatch.setattr(gpu_steps, "STEPS", (step("native", seen),))
    assert gpu_steps.main([f"--out={tmp_path}"]) == 0
    found = json.loads((tmp_path / "nvidia-h200-mig.json").read_text())
    assert found["steps"]["native"]["said"] == ["1 passed, cuda 9.0"]
    there = Setup("cuda", tmp_path, "device")
    assert gpu_steps.build(there)[-1] == "--inplace"
    assert gpu_steps.memcheck(there)[:2] == ["compute-sanitizer", "--tool"]


def test_without_a_device_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_steps.main([]) == 0
    said = capsys.readouterr().out
    assert said.startswith("no CUDA device that torch can use: nothing was run; --rehearse")


PROGRAM = """
import importlib.util, sys
assert not any(map(importlib.util.find_spec, ("sklearn", "matplotlib", "xdist", "hypothesis")))
sys.path.insert(0, "benchmarks")
for group in ("gpu", "kernels", "pgd"):
    assert importlib.import_module(f"groups.{group}").CASES
import pytest
sys.exit(pytest.main(["-q", "-m", "gpu", "--collect-only", "-p", "no:cacheprovider"]))
"""


@pytest.mark.slow
def test_a_bare_machine_collects_the_gpu_tests_and_the_measurements(tmp_path: Path) -> None:
    """With Python, and of what is installed here `bare.THERE` alone. The whole rehearsal, which
    runs like this too, is a part of `make check`."""
    seen = bare.environment(tmp_path)
    seen["PYTHONPATH"] += os.pathsep + str(REPOSITORY)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=REPOSITORY,
        env={**os.environ, **seen},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    collected = done.stdout
    for name in ("test_parity", "test_lora_native", "test_cuda_graph", "test_no_waiting"):
        assert f"{name}.py::" in collected
