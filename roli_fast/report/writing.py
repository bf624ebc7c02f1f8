"""From a run directory to one self-contained HTML file."""

import contextlib
import functools
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined

from roli_fast.errors import RunDirectoryError, describe
from roli_fast.files import told, write_bytes
from roli_fast.report import examples, facts, plots, tables, text, words
from roli_fast.report.read import Run, read
from roli_fast.report.subjects import Page
from roli_fast.running.folder import CONFIG

REPORT = "report.html"
COMPARISON = "comparison.html"

NEEDED = (Path(CONFIG), Path("summary.json"))
"""Without these there is no page."""


def write(run_dir: Path, others: Sequence[Path] = (), *, out: Path | None = None) -> Path:
    """Write the page of a run, or with `others` one that compares runs.

    The page is one file: styles, charts and images are inside, there is no script, and it opens
    from disk without a network. A file of a run that is missing or damaged leaves its part out,
    with the command that makes it.

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
    """The page, without the files that keep it from being made, if there are any."""
    runs = [read(folder) for folder in folders]
    with contextlib.suppress(Exception):  # a value that the checks of `read` do not know
        return _rendered(runs, where)
    without = [dict.fromkeys(set(run.files) - set(NEEDED), "") for run in runs]

    def rendered() -> str:
        found = [read(folder, bad) for folder, bad in zip(folders, without, strict=True)]
        return _rendered(found, where)

    for bad in without:
        for file in sorted(bad):
            del bad[file]
            try:
                rendered()
            except Exception as error:
                bad[file] = told(error)
    try:
        return rendered()
    except Exception as error:
        got = f"'{runs[0].folder / NEEDED[1]}' and the files beside it: {told(error)}"
        raise RunDirectoryError(describe("run", "files that a page can be made of", got)) from error


def _rendered(runs: Sequence[Run], where: Path) -> str:
    """The page as text; links to files lead from the folder `where`."""
    template = _environment().get_template("page.html")
    return template.render(page=Page(runs), link=functools.partial(_link, where)).lstrip()


def _link(where: Path, run: Run, file: Path) -> str:
    return quote(Path(os.path.relpath(run.folder / file, where)).as_posix())


@functools.cache
def _environment() -> Environment:
    """The template, compiled once a process."""
    found = Environment(
        loader=PackageLoader("roli_fast.report", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.globals.update(examples=examples, facts=facts, plots=plots, tables=tables, words=words)
    found.globals.update(listed=text.listed, count=text.count)
    found.filters |= {"percent": text.percent, "whole": text.whole, "method": text.method_name}
    found.filters["quoted"] = lambda path: shlex.quote(str(path))
    return found
