"""Two processes never work in one run directory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from small import run_small, small

from roli_fast.errors import RunDirectoryError
from roli_fast.running.lock import LOCK, RunLock
from roli_fast.train.run_directory import open_run_dir

HOLD = """
import sys, time
from pathlib import Path
from roli_fast.running.lock import RunLock
RunLock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(120)
"""


def test_another_process_is_named_and_its_death_frees_the_folder(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, env=os.environ
    )
    try:
        assert holder.stdout and holder.stdout.readline() == b"held\n"
        for resume in (True, False):
            with pytest.raises(RunDirectoryError, match=rf"`--run_dir`.*process {holder.pid} on"):
                open_run_dir(tmp_path, small(), resume=resume)
        assert not (tmp_path / "config.yaml").exists()
    finally:
        holder.kill()
        holder.communicate()
    open_run_dir(tmp_path, small(), resume=False).release()
    assert (tmp_path / "config.yaml").exists()


def test_a_run_holds_its_folder_and_lets_it_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from roli_fast.train import pipeline

    folder = tmp_path / "run"
    original = pipeline.Pipeline.run

    def nested(self: pipeline.Pipeline, *arguments: object) -> object:
        with pytest.raises(RunDirectoryError, match=f"in use by process {os.getpid()} "):
            RunLock(folder)
        return original(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(pipeline.Pipeline, "run", nested)
    run_small(folder, "--methods=probe", "--probe.epochs=1")
    with RunLock(folder):
        assert (folder / LOCK).read_text().split()[0] == str(os.getpid())


def test_a_failed_run_lets_its_folder_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from roli_fast.train import pipeline

    def crash(*_arguments: object) -> None:
        raise RuntimeError("power cut")

    monkeypatch.setattr(pipeline.Pipeline, "run", crash)
    with pytest.raises(RuntimeError, match="power cut"):
        run_small(tmp_path / "run", "--methods=probe", "--probe.epochs=1")
    RunLock(tmp_path / "run").release()


def test_a_file_system_without_locks_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from roli_fast.running import lock

    def refuse(*_arguments: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    with RunLock(tmp_path):
        pass
    monkeypatch.setattr(lock, "fcntl", None)
    with RunLock(tmp_path):
        pass
