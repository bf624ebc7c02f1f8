"""From a run directory to one self-contained HTML file."""

import functools
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined

from roli_fast.errors import RunDirectoryError
from roli_fast.files import naming, write_bytes
from roli_fast.report import examples, plots, tables, text, words
from roli_fast.report.read import Run, read
from roli_fast.report.subjects import Page

REPORT = "report.html"
COMPARISON = "comparison.html"


def write(run_dir: Path, others: Sequence[Path] = (), *, out: Path | None = None) -> Path:
    """Write the page of a run, or with `others` one that compares runs.

    The page is one file: styles, charts and images are inside, there is no script, and it opens
    from disk without a network. A file of a run that is missing or cannot be read leaves its part
    out, with the command that makes it.

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
    path = out or Path(run_dir) / (COMPARISON if others else REPORT)
    runs = [read(Path(folder)) for folder in (run_dir, *others)]
    template = _environment().get_template("page.html")
    names = "' or '".join(map(str, (run_dir, *others)))
    with naming(names, RunDirectoryError, "run", "files that a page can be made of"):
        page = template.render(page=Page(runs), link=functools.partial(_link, path.parent))
    # names of folders that are no UTF-8 come as lone surrogates, which have no bytes: "?"
    write_bytes(path, page.lstrip().encode(errors="replace"))
    return path


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
    found.globals.update(examples=examples, plots=plots, tables=tables, words=words)
    found.globals.update(listed=text.listed, count=text.count)
    found.filters |= {"percent": text.percent, "whole": text.whole, "method": text.method_name}
    found.filters["quoted"] = lambda path: shlex.quote(str(path))
    return found
