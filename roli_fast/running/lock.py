"""One process at a time works in a folder of results."""

import os
import platform
from pathlib import Path
from types import TracebackType

from roli_fast.errors import RunDirectoryError

try:
    import fcntl
except ImportError:  # no such locks on Windows: there nothing is held
    fcntl = None  # type: ignore[assignment]

LOCK = "run.lock"
"""The file that is locked; it holds the process id and the machine's name."""


class RunLock:
    """Held from construction to `release`, or to the end of the process, however that comes.

    It is the system's lock on the file and not the file itself, so what a killed process leaves
    holds nobody up. Where the file system has no locks it does nothing.

    Args:
        folder: what is locked.
        option: the flag that names it, for messages.

    Raises:
        RunDirectoryError: another process works there.
    """

    def __init__(self, folder: Path, option: str = "--run_dir") -> None:
        self._file: int | None = None
        if fcntl is None:
            return
        path = folder / LOCK
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            raise RunDirectoryError(
                f"`{option}`: '{folder}' is in use by {_holder(path)}. Wait until it ends or stop "
                "it, or name a new folder."
            ) from None
        except OSError:  # a file system without locks
            os.close(file)
            return
        os.ftruncate(file, 0)
        os.write(file, f"{os.getpid()} {platform.node()}\n".encode())
        self._file = file

    def release(self) -> None:
        """Let others in. The file stays: removing it could take it from under the next holder."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __enter__(self) -> "RunLock":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


def _holder(path: Path) -> str:
    words = path.read_text(encoding="utf-8").split()
    return f"process {words[0]} on {words[1]}" if len(words) == 2 else "another process"
