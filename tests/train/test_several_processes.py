"""A run of several processes is the run of one, and ends in all of them at once."""

import functools
import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import several
import torch
from processes import Member, free_port, together
from small import FLAGS, assert_same_weights, records, weights

from roli_fast.train.checkpoint import load_resume


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process, in fp64."""
    folder = tmp_path_factory.mktemp("single") / "run"
    run(1, several.train, folder, double=True)
    return folder


@pytest.fixture(scope="module")
def double(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two processes in fp32, uninterrupted, and analysed."""
    folder = tmp_path_factory.mktemp("double") / "run"
    more = ("--analysis_images=20", "--report=true")
    assert codes(run(2, several.train, folder, *more)) == [0, 0]
    return folder


def run(world: int, work: Any, *arguments: Any, **options: Any) -> list[Member]:
    return together(world, functools.partial(work, **options), *arguments)


def codes(members: list[Member]) -> list[Any]:
    """Exit statuses; the signal's negative number for one killed, None for a traceback."""
    return [member.process.exitcode or member.value for member in members]


def test_the_first_one_analyses(double: Path) -> None:
    tree = json.loads((double / "seed-0/ranli/analysis.json").read_text())
    assert [stage["name"] for stage in tree["stages"]] == ["ranli"]
    assert (tree["images"]["train"], tree["images"]["validation"]) == (20, 20)
    assert (double / "report.html").is_file()


def assert_close(first: Path, second: Path) -> None:
    """The same run but for the order of sums in fp64."""
    a, b = weights(first), weights(second)
    assert a.keys() == b.keys()
    for path, tensors in a.items():
        for name, tensor in tensors.items():
            torch.testing.assert_close(b[path][name], tensor, rtol=1e-11, atol=1e-11)
    for mine, other in zip(records(first), records(second), strict=True):
        assert mine.keys() == other.keys()
        for key, value in mine.items():
            same = value == other[key]
            near = isinstance(value, float) and math.isclose(value, other[key], rel_tol=1e-11)
            assert near if key == "train_loss" else same, key
    flags = [json.loads((f / "seed-0/roli/test.json").read_text()) for f in (first, second)]
    assert flags[0] == flags[1]


def test_three_processes_are_one(single: Path, tmp_path: Path) -> None:
    """Batches of 35, 35 and 2 images: uneven shares, and in the last two processes have none."""
    members = run(3, several.train, tmp_path / "run", double=True)
    assert codes(members) == [0, 0, 0], members
    assert_close(single, tmp_path / "run")
    assert "Everything is in" in members[0].output
    assert members[1].output == members[2].output == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "skip"),
    [
        (("--finetune.attack=sora", "--finetune.validation_share=1"), "--finetune.attack"),
        (("--finetune.averaging={}",), "?"),
        (("--finetune.objective=autolora", "--finetune.schedule=auto"), "?"),
    ],
    ids=["SORA", "weights", "AutoLoRa's accuracy"],
)
def test_an_average_is_that_of_all_processes(
    tmp_path: Path, more: tuple[str, ...], skip: str
) -> None:
    """Batches of 35, 35 and 2 images, in four parts."""
    for world in (1, 2):
        folder = tmp_path / str(world)
        members = run(world, several.train, folder, *more, double=True, skip=skip)
        assert codes(members) == [0] * world, members
    assert_close(tmp_path / "1", tmp_path / "2")


def test_a_signal_to_one_stops_all_and_one_process_goes_on(single: Path, tmp_path: Path) -> None:
    """In fp64, so that only the order of sums tells one process from two."""
    folder = tmp_path / "run"
    work = ("SIGTERM", 1, 5, folder)
    members = run(2, several.struck, *work, double=True)
    assert codes(members) == [143, 143], members
    again = f"torchrun --nproc-per-node=2 -m roli_fast.train --run_dir {folder} --resume"
    assert again in members[0].output and members[1].output == ""
    assert (folder / "seed-0/roli/stage-2-finetune/resume.pt").exists()
    assert codes(run(1, several.train, folder, double=True)) == [0]
    assert_close(single, folder)


@pytest.mark.parametrize(("event", "end"), [("SIGKILL", -9), ("damaged image", 2)])
def test_what_comes_over_one_ends_all_and_costs_nothing(
    double: Path, tmp_path: Path, event: str, end: int
) -> None:
    """The run goes on as if nothing had happened, to the same bits."""
    folder = tmp_path / "run"
    members = run(2, several.struck, event, 1, 5, folder, "--checkpoint_minutes=0")
    assert codes(members) == [2, end], members
    assert "lost another one" in members[0].output
    saved = load_resume(folder / "seed-0/ranli/stage-1-ranli/resume.pt")
    assert (saved.progress.epoch, saved.progress.step) == (1, 1)
    assert codes(run(2, several.train, folder)) == [0, 0]
    assert_same_weights(double, folder)
    assert records(double) == records(folder)


def test_other_images_in_one_process(tmp_path: Path) -> None:
    members = run(2, several.other_images, tmp_path / "run")
    assert codes(members) == [2, 2], members
    assert "another data train images" in members[0].output
    assert "in process 1. All must read the same files." in members[0].output
    assert not (tmp_path / "run").exists()


def test_what_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for flag, told in (
        ("--sweep=ranli.optimizer.lr=0.1,0.01", "`--sweep`: expected one process, got 2 processes"),
        ("--device=cuda:1", "`device`: expected no one GPU for all, got cuda:1. Write cuda"),
    ):
        assert several.train(tmp_path / "run", flag) == 2
        assert told in caplog.text
    assert not (tmp_path / "run").exists()


def test_batch_norm_is_the_same_everywhere(tmp_path: Path) -> None:
    """Statistics of each process's own images, and their mean for all."""
    members = run(2, several.batch_norm, tmp_path / "run")
    (status, state, seeds), other = members[0].value, members[1].value
    assert status == other[0] == 0 and any("running_var" in name for name in state)
    assert len({*seeds, *other[2]}) == 2 * 6  # of dropout: an own one for each update and process
    assert all((array == other[1][name]).all() for name, array in state.items())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_two_processes_on_cuda_are_one(tmp_path: Path) -> None:
    """By NCCL where each has a GPU of its own, by gloo on one; in fp64, by cuBLAS's order of sums
    to 1e-6 after 11 updates."""
    folders = [tmp_path / name for name in ("one", "two")]
    for world, folder in enumerate(folders, 1):
        members = run(world, several.train, folder, "--device=cuda", double=True)
        assert codes(members) == [0] * world, members
    one, two = map(weights, folders)
    for path, tensors in one.items():
        for name, tensor in tensors.items():
            torch.testing.assert_close(two[path][name], tensor, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_torchrun_itself(double: Path, tmp_path: Path) -> None:
    """It passes SIGTERM on, and starts the run again."""
    folder = tmp_path / "run"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    address = [f"--master-port={free_port()}", "-m", "roli_fast.train", "--run_dir", str(folder)]
    flags = [*FLAGS, *several.FAST, "--checkpoint_minutes=0"]
    first = subprocess.Popen([*torchrun, *address, *flags], stderr=subprocess.PIPE, text=True)
    while not list(folder.rglob("resume.pt")):
        assert first.poll() is None
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    output = first.communicate(timeout=300)[1]
    assert "stopped by SIGTERM" in output and first.returncode
    subprocess.run([*torchrun, *address, "--resume"], check=True, timeout=300)
    assert_same_weights(double, folder)
    assert records(double) == records(folder)
