"""`python -m roli_fast.zoo list`, `python -m roli_fast.zoo get NAME`: published weights."""

import argparse
import importlib
import sys
from collections.abc import Iterator, Sequence

from roli_fast.errors import ArgumentError, RoliFastError, describe
from roli_fast.running.command import run_command
from roli_fast.zoo import PREFIX, ZOO, Entry, fetch, find, folder

DESCRIPTION = """\
Published weights. `get` downloads one file, once; nothing else in the package downloads from
here. A run takes it with --model.name ARCHITECTURE --model.weights zoo:NAME. `check` compares
its accuracy on a few images with what it came with, and other normalisations with its own."""

DATA = "image folders named as the classes: ImageNet's synsets (n01440764) or names"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (0 done, 1 a check that found something wrong,
    2 a mistake, 130 after Ctrl-C)."""
    parser = argparse.ArgumentParser(
        prog="python -m roli_fast.zoo",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list", help="what there is, and what is on this disk")
    listing.add_argument("part", nargs="?", default="", help="only names with this in them")
    get = commands.add_parser("get", help="download one file, or check the one that is here")
    get.add_argument("name", help="a name from `list`")
    get.add_argument("--url", help="another address of the same file, a mirror's say")
    check = commands.add_parser(
        "check", help="measure a network with its own head, on a few images"
    )
    check.add_argument(
        "name", help="a name from `list`, or a timm architecture with its own weights"
    )
    check.add_argument("--data", required=True, metavar="FOLDER", help=DATA)
    check.add_argument("--weights", metavar="FILE", help="a weight file of the architecture")
    for part in ("mean", "std"):
        check.add_argument(f"--{part}", type=_numbers, metavar="R,G,B", help="instead of its own")
    check.add_argument("--images", type=int, default=400, help="about how many")
    check.add_argument("--device", default="auto", help="auto, cpu, cuda")
    options = parser.parse_args(arguments)
    try:
        if options.command == "check":
            return _check(options)
        listed = options.command == "list"
        for line in _table(options.part) if listed else _get(find(options.name), options.url):
            print(line)
    except RoliFastError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; nothing was kept", file=sys.stderr)
        return 130
    return 0


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(number) for number in text.split(","))


def _check(options: argparse.Namespace) -> int:
    """Print the report; 1 where something is wrong."""
    # evaluation stands above the zoo, and is needed here alone
    evaluation = importlib.import_module("roli_fast.evaluate.backbone_check")
    found = evaluation.check_backbone(
        options.name,
        options.data,
        weights=options.weights,
        mean=options.mean,
        std=options.std,
        images=options.images,
        device=options.device,
    )
    for line in found.lines():
        print(line)
    return 1 if found.warnings else 0


def _table(part: str) -> Iterator[str]:
    entries = [one for one in ZOO.values() if part in one.name]
    wide = {
        name: max((len(getattr(one, name)) for one in entries), default=4)
        for name in ("name", "architecture", "trained_for", "verified")
    }
    cells = "{{:{name}}}  {{:{architecture}}}  {{:{trained_for}}}".format(**wide)
    row = f"{cells} {{:>6}} {{:>6}}  {{:10}} {{:{wide['verified']}}} {{}}".format
    yield row("name", "timm architecture", "for", "clean", "robust", "by", "verified", "on disk")
    for one in entries:
        here = "yes" if (folder() / one.file).is_file() else "no"
        clean, robust = ("-" if n is None else f"{n:.1f}" for n in (one.clean, one.robust))
        attack = "-" if one.robust is None else one.attack
        first = one.name, one.architecture, one.trained_for
        yield row(*first, clean, robust, attack, one.verified, here)
    yield ""
    yield "Top-1 accuracy on ImageNet in percent, as published; verified: what vouches for the row,"
    yield "none of whose files was downloaded when the table was written. Numbers from:"
    yield from (f"  {source}" for source in dict.fromkeys(one.source for one in entries))
    yield f"Files are kept in {folder()} (ROLI_FAST_HOME or XDG_CACHE_HOME changes it)."


def _get(entry: Entry, url: str | None) -> Iterator[str]:
    path = folder() / entry.file
    if entry.by_hand and not url and not path.is_file():
        fix = f"Fetch the file from that page and put it at {path}, or give its own --url."
        raise ArgumentError(describe("name", "a file with an address", entry.url, fix))
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
    if entry.note:
        yield entry.note
    yield f"Use: --model.name {entry.architecture} --model.weights {PREFIX}{entry.name}"


if __name__ == "__main__":
    run_command(main)
