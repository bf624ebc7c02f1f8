"""What is published where (`weights.ini`, one row a file), and where these files lie on this
machine."""

import configparser
import difflib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from roli_fast.errors import ArgumentError, CheckpointError, describe

PREFIX = "zoo:"

NORMALIZATIONS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}
"""Mean and std that published networks of colour images have: all but a few have one of these."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One published weight file.

    Args:
        name: what `get`, `check` and `zoo:NAME` call it.
        architecture: the timm architecture that it fits.
        options: of `timm.create_model`, without which it does not fit.
        url: where its publisher offers it, or a page with the file.
        file: its name on this disk.
        sha256: of the file, in hex; fewer than 64 digits where the publisher tells only the
            first ones; empty where it tells none.
        mean: channel means of the normalisation that it was trained with.
        std: channel standard deviations likewise.
        image_size: height and width of its images.
        trained_for: the threat model of its training, "linf 4/255", or "clean".
        head: whether it has a head for ImageNet's classes.
        clean: reported clean top-1 accuracy on ImageNet in percent; None where there is none.
        robust: reported top-1 accuracy under `trained_for` and `attack` in percent, likewise.
        attack: what `robust` was measured with.
        source: who reports these numbers, and how they were measured.
        note: what a user should know.
    """

    name: str
    architecture: str
    options: dict[str, Any] = field(default_factory=dict)
    url: str
    file: str
    sha256: str = ""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: int = 224
    trained_for: str = "clean"
    head: bool = True
    clean: float | None = None
    robust: float | None = None
    attack: str = "AutoAttack"
    source: str
    note: str = ""

    @property
    def verified(self) -> str:
        """What vouches for the row; the file itself was not at hand when it was written."""
        if self.by_hand:
            return "page alone"
        return "address, sha256" if self.sha256 else "address alone"

    @property
    def by_hand(self) -> bool:
        """Whether `url` is a page of files, from which a person has to fetch it."""
        return "/folders/" in self.url

    @property
    def reported(self) -> str:
        """The accuracies that it came with, in words."""
        clean = "no accuracy" if self.clean is None else f"{self.clean:.1f} % clean"
        if self.robust is None:
            return clean
        return f"{clean}, {self.robust:.1f} % under {self.trained_for} ({self.attack})"


def _entries(publisher: str, shared: Mapping[str, str]) -> Iterator[Entry]:
    """The rows of one section."""
    mean, std = NORMALIZATIONS[shared.get("normalization", "imagenet")]
    for row in shared["rows"].strip().splitlines():
        name, place, architecture, threat, clean, robust, sha256, *options = row.split()
        pairs = (option.split("=") for option in options)
        last = place.rsplit("/", 1)[-1]
        yield Entry(
            name=f"{publisher}_{name}",
            architecture=architecture,
            options={key: int(value) if value.isdigit() else value for key, value in pairs},
            url=shared["url"].format(place),
            file=shared.get("file", "{place}").format(name=name, place=last),
            sha256=sha256.strip("-"),
            mean=mean,
            std=std,
            image_size=int(shared.get("image_size", 224)),
            trained_for=threat.replace(":", " "),
            head=shared.get("head") != "no",
            clean=None if clean == "-" else float(clean),
            robust=None if robust == "-" else float(robust),
            attack=shared.get("attack", "AutoAttack"),
            source=" ".join(shared["source"].split()),
            note=" ".join(shared.get("note", "").split()),
        )


def _read() -> dict[str, Entry]:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_string(Path(__file__).with_name("weights.ini").read_text(encoding="utf-8"))
    sections = ((section.split()[0], parser[section]) for section in parser.sections())
    return {one.name: one for publisher, shared in sections for one in _entries(publisher, shared)}


ZOO: dict[str, Entry] = _read()
"""Name -> entry, in the order of the file."""


def folder() -> Path:
    """The cache's folder of weights; it need not exist.

    $ROLI_FAST_HOME/weights where that variable is set, else roli_fast/weights in the user's cache
    folder ($XDG_CACHE_HOME or ~/.cache).
    """
    own, cache = os.environ.get("ROLI_FAST_HOME"), os.environ.get("XDG_CACHE_HOME")
    if own:
        return Path(own).expanduser() / "weights"
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
    raise ArgumentError(describe("name", "a name of the zoo", repr(name), fix))


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
        CheckpointError: a published file that is not on disk, with its address and the command
            that fetches it.
    """
    entry = named(weights)
    by_name = weights.startswith(PREFIX)
    path = folder() / entry.file if entry and by_name else Path(weights)
    if entry and not path.is_file():
        fix = f"Fetch it from {entry.url} once"
        fix += " by hand" if entry.by_hand else f" with `python -m roli_fast.zoo get {entry.name}`"
        fix += "." if by_name else f", and write weights: {PREFIX}{entry.name}."
        raise CheckpointError(
            describe("weights", f"the published {entry.file}", f"no file '{path}'", fix)
        )
    return path
