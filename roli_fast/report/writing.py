"""From a run directory to one self-contained HTML file."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from roli_fast.errors import RunDirectoryError, describe
from roli_fast.files import told, write_bytes
from roli_fast.report.read import read
from roli_fast.report.template import render

REPORT = "report.html"
COMPARISON = "comparison.html"


def write(run_dir: Path, others: Sequence[Path] = (), *, out: Path | None = None) -> Path:
    """Write the page of a run, or with `others` one that compares runs.

    The page is one file: styles, charts and images are inside, there is no script, and it opens
    from disk without a network. A file of a run that is missing leaves its part out, with the
    command that makes it.

    Args:
        run_dir: what `python -m roli_fast.train` wrote, finished or not.
        others: further run directories to compare it with.
        out: the file; None is `run_dir`/report.html, or comparison.html with `others`.

    Returns:
        The file written; one of that name is replaced in one step.

    Raises:
        RunDirectoryError: a folder is no run directory, or its summary cannot be read, or no page
            can be made of its files.
    """
    folders = [Path(folder) for folder in (run_dir, *others)]
    path = out or Path(run_dir) / (COMPARISON if others else REPORT)
    # names of folders that are no UTF-8 come as lone surrogates, which have no bytes: "?"
    write_bytes(path, _page(folders, path.parent).encode(errors="replace"))
    return path


def _page(folders: Sequence[Path], where: Path) -> str:
    """The page, without the file that keeps it from being made, if there is one."""
    runs = [read(folder) for folder in folders]
    try:
        return render(runs, where)
    except Exception as error:  # a value that the checks of `read` do not know
        for place, run in enumerate(runs):
            for file in run.files[1:]:
                rest = [*runs[:place], read(run.folder, {file: told(error)}), *runs[place + 1 :]]
                with contextlib.suppress(Exception):
                    return render(rest, where)
        got = f"'{runs[0].files[0]}' and the files beside it: {told(error)}"
        raise RunDirectoryError(describe("run", "files that a page can be made of", got)) from error
