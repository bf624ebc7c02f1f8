"""`python -m roli_fast.zoo list`, `python -m roli_fast.zoo get NAME`: published weights."""

import argparse
import sys
from collections.abc import Iterator, Sequence

from roli_fast.errors import RoliFastError
from roli_fast.zoo.cache import PREFIX, find, folder
from roli_fast.zoo.download import Fetched, fetch, stored_sha256
from roli_fast.zoo.table import ZOO, Entry

DESCRIPTION = """\
Published weights. `get` downloads one file, once; nothing else in the package downloads from
here. A run takes it with --model.name ARCHITECTURE --model.weights zoo:NAME."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (0 done, 2 a mistake, 130 after Ctrl-C)."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "list":
            print("\n".join(_table()))
        else:
            _get(find(options.name), options.url)
    except RoliFastError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; nothing was kept", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
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
    return parser


def _table() -> Iterator[str]:
    rows = [("name", "timm architecture", "trained for", "clean", "robust", "on disk")]
    rows += [
        (
            entry.name,
            entry.architecture,
            entry.trained_for,
            f"{entry.clean:.1f}",
            "-" if entry.robust is None else f"{entry.robust:.1f}",
            "yes" if (folder() / entry.file).is_file() else "no",
        )
        for entry in ZOO.values()
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (text.ljust(width) for text, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()
    yield ""
    yield "Top-1 accuracy on ImageNet in percent as published; robust: AutoAttack. From:"
    yield from (f"  {source}" for source in dict.fromkeys(e.source for e in ZOO.values()))
    yield f"Files are kept in {folder()} (ROLI_FAST_HOME or XDG_CACHE_HOME changes it)."


def _get(entry: Entry, url: str | None) -> None:
    url = url or entry.url
    path = folder() / entry.file
    if not path.is_file():
        print(f"{entry.name}: {url}")
    found = fetch(url, path, sha256=entry.sha256, quiet=False)
    print("\n".join(_report(entry, found)))


def _report(entry: Entry, found: Fetched) -> Iterator[str]:
    yield f"{found.path} ({'fetched' if found.new else 'was there already'})"
    yield f"sha256 {found.sha256}"
    if found.checked == "published":
        yield "It equals the publisher's."
    elif found.checked == "stored":
        yield "It equals what an earlier fetch computed; the publisher gives none to compare with."
    elif found.checked:
        yield f"Compared with the {found.checked}; the publisher gives no more."
    else:
        yield "The publisher gives none, so nothing vouches for these bytes but the connection."
    if found.checked != "published":
        yield f"It is kept in {stored_sha256(found.path).name}; later checks compare with it."
    yield f"Use: --model.name {entry.architecture} --model.weights {PREFIX}{entry.name}"


if __name__ == "__main__":
    sys.exit(main())
