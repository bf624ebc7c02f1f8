"""One process at a time works in a folder of results."""

import os
import platform
from pathlib import Path
from types import TracebackType

from roli_fast.errors import RunDirectoryError, describe

try:
    import fcntl
except ImportError:  # no such locks on Windows: there nothing is held
    fcntl = None  # type: ignore[assignment]

LOCK = "run.lock"
"""The file that is locked; it holds the process id and the machine's name."""


class RunLock:
    """Held from construction to `release`, or to the end of the process, however that comes.

    It is the system's lock on the file and not the file itself, so what a killed process leaves
    holds nobody up; nor do its children, which give up their copy of it when they are forked. What
    the last holder was killed over writing is removed. Where the file system has no locks it does
    nothing.

    Args:
        folder: what is locked.
        option: the flag that names it, for messages.

    Raises:
        RunDirectoryError: another process works there, or the folder cannot be written.
    """

    def __init__(self, folder: Path, option: str = "--run_dir") -> None:
        path = folder / LOCK
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            expected = "a folder that can be written"
            raise RunDirectoryError(describe(option, expected, f"'{folder}': {error}")) from error
        _held.add(self)
        holder = path.read_text(encoding="utf-8", errors="replace").split()
        try:
            if fcntl is not None:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            who = f"process {holder[0]} on {holder[1]}" if len(holder) == 2 else "another process"
            raise RunDirectoryError(
                f"`{option}`: '{folder}' is in use by {who}. Wait until it ends or stop it, or "
                "name a new folder."
            ) from None
        except OSError:  # a file system without locks
            self.release()
            return
        _remove_unfinished(folder, holder)
        os.ftruncate(self._file, 0)
        os.write(self._file, f"{os.getpid()} {platform.node()}\n".encode())

    def release(self) -> None:
        """Let others in. The file stays: removing it could take it from under the next holder."""
        if self in _held:
            _held.discard(self)
            os.close(self._file)

    def __enter__(self) -> "RunLock":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


_held: set[RunLock] = set()


def _give_up_copies() -> None:
    """A forked child shares the lock, and would hold it after its parent was killed."""
    for lock in tuple(_held):
        lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_give_up_copies)


def _remove_unfinished(folder: Path, holder: list[str]) -> None:
    """Remove the temporary files (`files.write_bytes`) of the process that held the lock; not those
    of a folder with a lock of its own, of an evaluation say."""
    if holder and holder[0].isdecimal():
        for where, inside, names in os.walk(folder):
            inside[:] = [name for name in inside if not Path(where, name, LOCK).exists()]
            for name in names:
                if name.startswith(".") and name.endswith(f".{holder[0]}.tmp"):
                    Path(where, name).unlink()
