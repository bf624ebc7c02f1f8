"""What is kept of a chunk of images: one JSON file, replaced whole after every row of flags.

Adversarial images, where they are asked for, lie beside it and are written first.
"""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from roli_fast.engine import Cost
from roli_fast.errors import RunDirectoryError
from roli_fast.evaluate.shares import to_flags, to_text
from roli_fast.files import naming, read_json, write_json, write_tensors

FORMAT = 2
FOLDER = "chunks"


@dataclass
class Found:
    """One row of flags of a chunk.

    Args:
        group: rows of a group follow one another: a norm and its searches. The name of any other
            group has a space in it: "unseen ...", "curve ...", "shift ...".
        part: what tells a row from the others of its group: a search's label.
        attacked: how many images it got.
        fooled: flags of the whole chunk, true where the model is wrong by it.
        lost: images that a search took for adversarial and that were right when asked again.
        cost: passes, those of asking again included.
        seconds: of the wall clock.
        notes: what the search had to say.
    """

    group: str
    part: str
    attacked: int
    fooled: Tensor
    cost: Cost
    lost: int = 0
    seconds: float = 0.0
    notes: tuple[str, ...] = ()


@dataclass
class Chunk:
    """How far a chunk is.

    Args:
        name: "00003" say, of its file.
        ids: of its samples.
        clean: flags, which images are classified right as they are.
        cost: of that, and of looking for signs.
        signs: warnings, text by kind.
        found: the rows so far, in the order of the plan.
    """

    name: str
    ids: list[int]
    clean: Tensor
    cost: Cost
    signs: dict[str, str] = field(default_factory=dict)
    found: list[Found] = field(default_factory=list)

    def alive(self, group: str | None) -> Tensor:
        """Flags: right as they are and by every row of `group`; None for those of all norms."""
        flags = self.clean.clone()
        for found in self.found:
            if found.group == group or group is None and " " not in found.group:
                flags &= ~found.fooled
        return flags


class Store:
    """The chunks of one evaluation on disk.

    Args:
        folder: the evaluation's.
        identity: hash of all that its results depend on; files of another one are refused.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self._folder = folder / FOLDER
        self._identity = identity

    def path(self, name: str) -> Path:
        """The file of a chunk."""
        return self._folder / f"{name}.json"

    def save(self, chunk: Chunk, images: dict[str, Tensor] | None = None) -> None:
        """Write a chunk; its adversarial `images`, norm -> (B, ...), before it."""
        if images:
            write_tensors(self._images(chunk.name), images, {"identity": self._identity})
        found = [asdict(one) | {"fooled": to_text(one.fooled)} for one in chunk.found]
        tree = asdict(chunk) | {"clean": to_text(chunk.clean), "found": found}
        write_json(self.path(chunk.name), {"format": FORMAT, "identity": self._identity} | tree)

    def load(self, name: str, ids: list[int], plan: list[tuple[str, str]]) -> Chunk | None:
        """A chunk as it was saved; None where nothing was.

        Args:
            name: of the chunk.
            ids: the samples that it must have.
            plan: (group, part) of every row, in order.

        Raises:
            RunDirectoryError: the file cannot be read, or belongs to something else.
        """
        path = self.path(name)
        if not path.exists():
            return None
        fix = "Nothing was changed. Move that file away to attack its images again, or name a new "
        fix += "folder."
        expected = "the state that this evaluation wrote"
        with naming(path, RunDirectoryError, "--out", expected, fix):
            tree = read_json(path)
            if tree["format"] != FORMAT or tree["identity"] != self._identity:
                raise ValueError("it belongs to another evaluation")
            chunk = _chunk(tree)
            if chunk.name != name or chunk.ids != ids:
                raise ValueError("it holds other samples")
            if [(f.group, f.part) for f in chunk.found] != plan[: len(chunk.found)]:
                raise ValueError("it holds other searches")
            if any(len(f) != len(ids) for f in (chunk.clean, *(f.fooled for f in chunk.found))):
                raise ValueError("a flag is missing")
            return chunk

    def images(self, chunk: Chunk, x: Tensor, norms: tuple[str, ...]) -> dict[str, Tensor]:
        """Saved adversarial images of a chunk, norm -> like `x`; `x` where nothing is fooled."""
        out = {norm: x.clone() for norm in norms}
        if not any(bool((chunk.clean & ~chunk.alive(norm)).any()) for norm in norms):
            return out
        path = self._images(chunk.name)
        fix = f"Move '{self.path(chunk.name)}' away to attack its images again."
        with naming(path, RunDirectoryError, "--out", "adversarial images", fix):
            with safe_open(path, framework="pt") as file:
                if (file.metadata() or {}).get("identity") != self._identity:
                    raise ValueError("it belongs to another evaluation")
                for norm in norms:
                    fooled = (chunk.clean & ~chunk.alive(norm)).to(x.device)
                    out[norm][fooled] = file.get_tensor(norm).to(x.device)[fooled]
        return out

    def _images(self, name: str) -> Path:
        return self._folder / f"{name}.safetensors"


def _chunk(tree: dict[str, Any]) -> Chunk:
    texts = [*tree["signs"].values(), *(note for entry in tree["found"] for note in entry["notes"])]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("`signs` and `notes` are texts")
    return Chunk(
        tree["name"],
        list(tree["ids"]),
        to_flags(tree["clean"]),
        _cost(tree["cost"]),
        dict(tree["signs"]),
        [_found(entry) for entry in tree["found"]],
    )


def _found(entry: dict[str, Any]) -> Found:
    _check_counts(entry, "attacked", "lost")
    if not math.isfinite(entry["seconds"]):
        raise ValueError(f"`seconds` is {entry['seconds']!r}")
    made = {"fooled": to_flags(entry["fooled"]), "cost": _cost(entry["cost"])}
    return Found(**{**entry, **made, "notes": tuple(entry["notes"])})


def _cost(tree: dict[str, int]) -> Cost:
    _check_counts(tree, *tree)
    return Cost(**tree)


def _check_counts(tree: dict[str, Any], *names: str) -> None:
    for name in names:
        if type(tree[name]) is not int or tree[name] < 0:
            raise ValueError(f"`{name}` is {tree[name]!r}, expected a count")
