"""Where the zoo's files lie on this machine, and what a `zoo:NAME` stands for."""

import difflib
import os
from pathlib import Path

from roli_fast.errors import ArgumentError, CheckpointError, describe
from roli_fast.zoo.table import ZOO, Entry

PREFIX = "zoo:"


def folder() -> Path:
    """The cache's folder of weights; it need not exist.

    $ROLI_FAST_HOME/weights where that variable is set, else roli_fast/weights in the user's cache
    folder ($XDG_CACHE_HOME or ~/.cache).
    """
    own = os.environ.get("ROLI_FAST_HOME")
    if own:
        return Path(own).expanduser() / "weights"
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "roli_fast" / "weights"


def find(name: str) -> Entry:
    """The entry called `name`.

    Raises:
        ArgumentError: there is none; similar names are listed.
    """
    if name in ZOO:
        return ZOO[name]
    near = difflib.get_close_matches(name, ZOO, n=3, cutoff=0.4)
    fix = f"Similar: {', '.join(near)}." if near else "See `python -m roli_fast.zoo list`."
    raise ArgumentError(describe("name", f"one of: {', '.join(ZOO)}", repr(name), fix))


def named(weights: str) -> Entry | None:
    """The entry that `zoo:NAME`, or a file of a published name, stands for; None for others.

    Raises:
        ArgumentError: an unknown name after `zoo:`.
    """
    if weights.startswith(PREFIX):
        return find(weights.removeprefix(PREFIX))
    file = Path(weights).name
    return next((entry for entry in ZOO.values() if entry.file == file), None)


def local_file(weights: str) -> Path:
    """The path of `weights`: a `zoo:NAME` in the cache, anything else as it is.

    Raises:
        ArgumentError: an unknown name after `zoo:`.
        CheckpointError: a published file that is not on disk, with the command that fetches it.
    """
    entry = named(weights)
    by_name = weights.startswith(PREFIX)
    path = folder() / entry.file if entry and by_name else Path(weights)
    if entry and not path.is_file():
        fix = f"Fetch it once with `python -m roli_fast.zoo get {entry.name}`"
        fix += "." if by_name else f", and write weights: {PREFIX}{entry.name}."
        raise CheckpointError(
            describe("weights", f"the published {entry.file}", f"no file '{path}'", fix)
        )
    return path
