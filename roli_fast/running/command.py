"""How every command ends."""

import os
import select
import sys
from collections.abc import Callable
from typing import NoReturn


def run_command(main: Callable[[], int]) -> NoReturn:
    """Exit with what `main` returns; with 1, and without a word, where the reader of its output,
    `head` say, has gone."""
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:
        if not _reader_has_gone():
            raise
        # what stdout still holds is written when the process ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)


def _reader_has_gone() -> bool:
    stdout = select.poll()
    stdout.register(sys.stdout.fileno(), 0)  # errors are always reported
    return any(event & select.POLLERR for _, event in stdout.poll(0))
