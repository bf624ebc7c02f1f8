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

KILLS = """
import os, signal, sys
from pathlib import Path
from roli_fast.running.lock import RunLock
for _ in range(5):
    ears, mouth = os.pipe()
    holder = os.fork()
    if holder == 0:
        lock = RunLock(Path(sys.argv[1]))
        if os.fork() == 0:
            os.write(mouth, str(os.getpid()).encode())
        while True:
            signal.pause()
    worker = int(os.read(ears, 20))
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    try:
        RunLock(Path(sys.argv[1])).release()
    finally:
        os.kill(worker, signal.SIGKILL)
"""


def test_children_of_a_killed_process_hold_nobody_up(tmp_path: Path) -> None:
    """Decoding workers outlive their run by seconds."""
    subprocess.run([sys.executable, "-c", KILLS, str(tmp_path)], check=True)


def test_only_what_the_last_holder_left_unfinished_is_removed(tmp_path: Path) -> None:
    inside = tmp_path / "evaluation"  # of another process, which may be at work
    for folder in (inside / "chunks", tmp_path / "seed-0"):
        folder.mkdir(parents=True)
    (inside / LOCK).write_text("11 here\n")
    (tmp_path / LOCK).write_text("7 here\n")
    kept = ["evaluation/.a.json.7.tmp", "evaluation/chunks/.0.json.11.tmp", "seed-0/.b.json.11.tmp"]
    kept += [".notes.tmp", "mine.7.tmp", ".notes.txt.77.tmp"]
    for name in (*kept, ".config.yaml.7.tmp", "seed-0/.best.safetensors.7.tmp"):
        (tmp_path / name).write_text("half")
    with RunLock(tmp_path):
        left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.tmp")}
    assert left == set(kept)


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
