"""A run that is stopped and resumed equals one that was not: same weights, same records."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from processes import CONTEXT, PATIENCE
from small import FLAGS, RESNET, assert_same_weights, records, run_small, stop_at

from roli_fast.errors import ConfigError, InterruptedRunError
from roli_fast.running.lock import LOCK
from roli_fast.running.signals import Interrupt
from roli_fast.train import loop, pipeline
from roli_fast.train.__main__ import main
from roli_fast.train.checkpoint import load_resume
from roli_fast.train.cli import parse

DROPOUT = ["--model.options.proj_drop_rate=0.1", "--model.options.drop_path_rate=0.1"]
"""Randomness inside the model must survive a resume too."""

OFTEN = [*FLAGS, *DROPOUT, "--checkpoint_minutes=0", "--workers=2"]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("straight") / "run"
    run_small(folder, *DROPOUT)
    return folder


def assert_same(straight: Path, folder: Path) -> None:
    assert_same_weights(straight, folder)
    assert records(straight) == records(folder)


def test_signals_between_updates_during_validation_and_during_the_test(
    straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(InterruptedRunError, match="SIGTERM"):
        stop_at(patch, 4)
        run_small(folder, *DROPOUT)
    for module in (loop, pipeline):
        original = module.evaluate

        def stopping(*given: Any, original: Any = original, **options: Any) -> Any:
            monkeypatch.undo()
            os.kill(os.getpid(), signal.SIGINT)
            return original(*given, **options)

        monkeypatch.setattr(module, "evaluate", stopping)
        with pytest.raises(InterruptedRunError, match="SIGINT"):
            run_small(folder, *DROPOUT)
        assert not (folder / "summary.json").exists()
    run_small(folder, *DROPOUT)
    assert_same(straight, folder)
    before = (folder / "summary.json").read_bytes()
    run_small(folder, *DROPOUT)
    assert (folder / "summary.json").read_bytes() == before, "a finished run is only read"


RANLI = ["--methods=ranli", "--ranli.epochs=2"]
GP = [*RANLI, "--ranli.batch_size=24", "--ranli.gradient_projection.beta=0.4"]
KINDS: dict[str, tuple[list[str], tuple[int, ...]]] = {
    # 72 images: 3 updates in each half of an epoch of gradient projection, 12 in all
    "gradient projection": ([*GP, *DROPOUT], (1, 3, 9)),
    "gradient projection, bn, sgd": (
        [*GP, *RESNET, "--ranli.optimizer.name=sgd", "--ranli.optimizer.lr=0.1"],
        (9,),
    ),
    "sora": ([*RANLI, "--ranli.batch_size=32", "--ranli.attack=sora"], (5,)),
    "lora": ([*RANLI, *DROPOUT, "--ranli.tuning=lora"], (3,)),
    "prompt": ([*RANLI, *DROPOUT, "--ranli.tuning=prompt"], (4,)),
}
"""Kind -> flags, and the updates after which it is stopped. Each has a state of its own."""


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_stage_remembers_survives(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags, updates = KINDS[kind]
    run_small(tmp_path / "straight", *flags)
    for after in updates:
        folder = tmp_path / str(after)
        with monkeypatch.context() as patch, pytest.raises(InterruptedRunError):
            stop_at(patch, after)
            run_small(folder, *flags)
        (file,) = folder.rglob("resume.pt")
        assert (load_resume(file).progress.sora not in (None, 0.99)) == (kind == "sora")
        run_small(folder, *flags)
        assert_same(tmp_path / "straight", folder)


def wait_for(ready: Callable[[], bool], ended: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not ready() and not ended():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def command(folder: Path) -> None:
    more = ["--resume"] if folder.exists() else OFTEN
    sys.exit(main(["--run_dir", str(folder), *more]))


def held_by(folder: Path, process: BaseProcess) -> bool:
    lock = folder / LOCK
    began = lock.exists() and (folder / "config.yaml").exists()
    return began and lock.read_text().startswith(f"{process.pid} ")


def test_a_kill_in_the_second_stage(straight: Path, tmp_path: Path) -> None:
    """kill -9 of a run whose decoding workers outlive it; another one goes on at once."""
    folder = tmp_path / "run"
    process = CONTEXT.Process(target=command, args=(folder,))
    process.start()
    file = folder / "seed-0/roli/stage-2-finetune/resume.pt"
    wait_for(file.exists, lambda: not process.is_alive())
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    run_small(folder, *DROPOUT)
    assert_same(straight, folder)


@pytest.mark.slow
def test_twenty_kills_each_with_an_immediate_resume(straight: Path, tmp_path: Path) -> None:
    """kill -9 at any moment, then `--resume`, run after run, to the same bits."""
    draws, left, runs = random.Random(0), 20, 0
    while left or runs == 0:
        folder = tmp_path / str(runs)
        process = CONTEXT.Process(target=command, args=(folder,))
        process.start()
        wait_for(lambda: held_by(folder, process), lambda: not process.is_alive())  # noqa: B023
        process.join(draws.uniform(0, 3) if left else None)
        left -= process.is_alive()
        process.kill()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        if (folder / "summary.json").exists():
            runs += 1
            if process.exitcode == 0:
                assert_same(straight, folder)


def test_a_signal_to_the_whole_group_with_decoding_workers(straight: Path, tmp_path: Path) -> None:
    """As a terminal's Ctrl-C and job schedulers send it. The workers are the run's to stop."""
    folder = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "roli_fast.train", "--run_dir", str(folder), *OFTEN],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    file = folder / "seed-0/roli/stage-1-probe/resume.pt"
    wait_for(file.exists, lambda: process.poll() is not None)
    os.killpg(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, output
    assert "Traceback" not in output and f"--run_dir {folder} --resume" in output
    assert output.count("stopping after this step") == 1  # no worker says so, too
    run_small(folder, *DROPOUT)
    assert_same(straight, folder)


def test_workers_that_a_signal_ended_are_no_error_of_their_own() -> None:
    """Nothing is saved then; without a signal it is the user's business."""
    ended = RuntimeError("DataLoader worker (pid 1) is killed by signal: Terminated.")
    with pytest.raises(InterruptedRunError, match="stopped by SIGTERM, and the decoding workers"):
        with Interrupt():
            os.kill(os.getpid(), signal.SIGTERM)
            raise ended
    for error, number in ((ended, None), (RuntimeError("shapes"), signal.SIGTERM)):
        with pytest.raises(RuntimeError) as raised, Interrupt() as interrupt:
            interrupt.signal = number
            raise error
        assert raised.value is error


def test_resume_keeps_the_saved_configuration(straight: Path, tmp_path: Path) -> None:
    command = parse(["--run_dir", str(straight), "--resume"])
    assert command.resume
    assert command.experiment.threat.eps == 0.04
    with pytest.raises(ConfigError, match=r"--threat\.eps"):
        parse(["--run_dir", str(straight), "--resume", "--threat.eps", "0.1"])
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        parse(["--run_dir", str(tmp_path), "--resume"])
    with pytest.raises(ConfigError, match="--run_dir"):
        parse(["--resume"])


def test_handlers_are_given_back_and_a_second_interrupt_is_immediate() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with Interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(InterruptedRunError, match="SIGINT"):
            interrupt.check()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
