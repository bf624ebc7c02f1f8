"""`python -m roli_fast.report`: see `--help`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from roli_fast.errors import RoliFastError
from roli_fast.report.writing import write
from roli_fast.running.command import run_command

DESCRIPTION = """\
Writes the page of a run anew from the run directory's files, RUN/report.html, or a page that
compares several runs. One self-contained HTML file: it opens from disk, without a network. Parts
whose files are missing are left out, with the command that makes them."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (0 done, 2 a mistake)."""
    parser = argparse.ArgumentParser(
        prog="python -m roli_fast.report",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", nargs="+", type=Path, help="what python -m roli_fast.train wrote")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="the file to write (default: RUN/report.html, for several runs comparison.html in "
        "the first one)",
    )
    options = parser.parse_args(arguments)
    first, *others = options.run
    try:
        path = write(first, others, out=options.out)
    except (RoliFastError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"Wrote {path}.")
    return 0


if __name__ == "__main__":
    run_command(main)
