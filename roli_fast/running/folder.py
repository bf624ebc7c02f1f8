"""The folder of results: never overwritten, and worked in by one process at a time."""

import datetime
from collections.abc import Mapping
from pathlib import Path

from roli_fast.errors import RunDirectoryError, check_utf8, describe
from roli_fast.files import write_bytes
from roli_fast.running.lock import LOCK, RunLock

CONFIG = "config.yaml"
"""In the folder: the whole configuration."""


def dated(parent: str, name: str) -> Path:
    """<parent>/<name>-<date>-<time>, to the microsecond: runs are started side by side."""
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S-%f")
    return Path(parent) / f"{name}-{stamp}"


def open_folder(
    folder: Path,
    configuration: str,
    *,
    resume: bool,
    option: str = "--run_dir",
    beside: Mapping[str, str] | None = None,
) -> RunLock:
    """Make a new folder with its configuration, or enter the one to resume.

    Args:
        folder: new or empty, or with `resume` one that an earlier call left.
        configuration: the text of its config.yaml.
        resume: go on in it.
        option: the flag that names it, for messages.
        beside: file name -> text of more that a new folder begins with, whole with config.yaml.

    Returns:
        The lock on it, for the caller to release.

    Raises:
        RunDirectoryError: it cannot be made, has something in it and this is not a resume, or
            another process works in it.
    """
    check_utf8(option, str(folder))  # safetensors opens no other paths
    try:
        if resume:
            return RunLock(folder, option)
        if folder.is_dir():
            _check_empty(folder, option)
        folder.mkdir(parents=True, exist_ok=True)
        lock = RunLock(folder, option)
        try:
            _check_empty(folder, option)  # again: another process may have been here meanwhile
            for name, text in {**(beside or {}), CONFIG: configuration}.items():
                write_bytes(folder / name, text.encode())
        except BaseException:
            lock.release()
            raise
        return lock
    except OSError as error:
        raise RunDirectoryError(
            describe(option, "a folder that can be made and written", f"'{folder}': {error}")
        ) from error


def is_used(folder: Path) -> bool:
    """Whether there is more in it than what a process that began to write may have left."""
    return any(path.name != LOCK and not path.name.endswith(".tmp") for path in folder.iterdir())


def _check_empty(folder: Path, option: str) -> None:
    if is_used(folder):
        ours = (folder / CONFIG).is_file()
        fix = "Add --resume to continue that run, or name a new folder."
        fix = fix if ours else "It holds no run: name a new folder."
        raise RunDirectoryError(
            f"`{option}`: '{folder}' exists already and is never overwritten. {fix}"
        )
