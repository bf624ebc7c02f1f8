"""Two processes never work in one run directory."""

import os
import signal
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from processes import CONTEXT
from small import small

from roli_fast.errors import RunDirectoryError
from roli_fast.running import lock
from roli_fast.running.lock import LOCK, RunLock
from roli_fast.train.run_directory import open_run_dir


def hold(folder: Path, said: Connection) -> None:
    """Take the lock, and keep it until killed."""
    own = RunLock(folder)
    said.send("held" if own else "")
    signal.pause()


def killed_holders(folder: Path) -> None:
    """Each holder is killed while a child of its own lives on; the next one takes over."""
    for _ in range(5):
        ears, mouth = os.pipe()
        holder = os.fork()
        if holder == 0:
            own = RunLock(folder)
            if os.fork() == 0:
                os.write(mouth, str(os.getpid()).encode())
            while own:
                signal.pause()
        worker = int(os.read(ears, 20))
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
        try:
            RunLock(folder).release()
        finally:
            os.kill(worker, signal.SIGKILL)


def test_children_of_a_killed_process_hold_nobody_up(tmp_path: Path) -> None:
    """Decoding workers outlive their run by seconds."""
    process = CONTEXT.Process(target=killed_holders, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == 0


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
    here, there = CONTEXT.Pipe(duplex=False)
    holder = CONTEXT.Process(target=hold, args=(tmp_path, there))
    holder.start()
    try:
        assert here.recv() == "held"
        for resume in (True, False):
            with pytest.raises(RunDirectoryError, match=rf"`--run_dir`.*process {holder.pid} on"):
                open_run_dir(tmp_path, small(), resume=resume)
        assert not (tmp_path / "config.yaml").exists()
    finally:
        holder.kill()
        holder.join()
    open_run_dir(tmp_path, small(), resume=False).release()
    assert (tmp_path / "config.yaml").exists()


def test_a_file_system_without_locks_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    with RunLock(tmp_path):
        pass
    monkeypatch.setattr(lock, "fcntl", None)
    with RunLock(tmp_path):
        pass
