"""`python -m roli_fast.zoo list`, `python -m roli_fast.zoo get NAME`: published weights."""

import argparse
import sys
from collections.abc import Iterator, Sequence

from roli_fast.errors import RoliFastError
from roli_fast.running.command import run_command
from roli_fast.zoo import PREFIX, ZOO, Entry, fetch, find, folder

DESCRIPTION = """\
Published weights. `get` downloads one file, once; nothing else in the package downloads from
here. A run takes it with --model.name ARCHITECTURE --model.weights zoo:NAME."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (0 done, 2 a mistake, 130 after Ctrl-C)."""
    parser = argparse.ArgumentParser(
        prog="python -m roli_fast.zoo",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="what there is, and what is on this disk")
    get = commands.add_parser("get", help="download one file, or check the one that is here")
    get.add_argument("name", help="a name from `list`")
    get.add_argument("--url", help="another address of the same file, a mirror's say")
    options = parser.parse_args(arguments)
    try:
        lines = _table() if options.command == "list" else _get(find(options.name), options.url)
        for line in lines:
            print(line)
    except RoliFastError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; nothing was kept", file=sys.stderr)
        return 130
    return 0


def _table() -> Iterator[str]:
    row = "{:22}{:30}{:13}{:>6}{:>8}  {}".format
    yield row("name", "timm architecture", "trained for", "clean", "robust", "on disk")
    for one in ZOO.values():
        here = "yes" if (folder() / one.file).is_file() else "no"
        robust = "-" if one.robust is None else f"{one.robust:.1f}"
        yield row(one.name, one.architecture, one.trained_for, f"{one.clean:.1f}", robust, here)
    yield ""
    yield "Top-1 accuracy on ImageNet in percent as published; robust: AutoAttack. From:"
    yield from (f"  {source}" for source in dict.fromkeys(e.source for e in ZOO.values()))
    yield f"Files are kept in {folder()} (ROLI_FAST_HOME or XDG_CACHE_HOME changes it)."


def _get(entry: Entry, url: str | None) -> Iterator[str]:
    path = folder() / entry.file
    if not path.is_file():
        yield f"{entry.name}: {url or entry.url}"
    digest = fetch(url or entry.url, path, sha256=entry.sha256, quiet=False)
    yield str(path)
    yield f"sha256 {digest}"
    if not entry.sha256:
        yield "The publisher gives none, so nothing vouches for these bytes but the connection."
    else:
        digits = f"first {len(entry.sha256)} digits" if len(entry.sha256) < 64 else "sha256"
        yield f"It has the publisher's {digits}."
    yield f"Use: --model.name {entry.architecture} --model.weights {PREFIX}{entry.name}"


if __name__ == "__main__":
    run_command(main)
