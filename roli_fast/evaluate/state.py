"""What is kept of a chunk: one JSON file, replaced whole after every search.

Adversarial images, where they are asked for, lie beside it and are written first.
"""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from roli_fast.engine import Cost
from roli_fast.errors import RunDirectoryError
from roli_fast.evaluate.confidence import wilson_interval
from roli_fast.files import naming, read_json, write_json, write_tensors

FORMAT = 1
FOLDER = "chunks"
UNSEEN = "unseen"
"""Begins the name of every group of searches that takes no part in a norm or the union."""


def to_text(flags: Tensor) -> str:
    """One character a sample, "1" for true."""
    return "".join("1" if flag else "0" for flag in flags.tolist())


def to_flags(text: str) -> Tensor:
    """The flags, bool (N,), of such a text."""
    if set(text) - {"0", "1"}:
        raise ValueError(f"flags are 0 and 1, got {text!r}")
    return torch.tensor([letter == "1" for letter in text], dtype=torch.bool)


def accuracy_of(flags: Tensor) -> dict[str, Any]:
    """A share of true flags with its 95 % interval, and the flags."""
    right = int(flags.sum())
    return {
        "accuracy": right / len(flags),
        "interval_95": list(wilson_interval(right, len(flags))),
        "flags": to_text(flags),
    }


def cost_of(tree: dict[str, int]) -> Cost:
    """A cost from its plain values. Raises ValueError for one that is no count."""
    _check_counts(tree, *tree)
    return Cost(**tree)


def _check_counts(tree: dict[str, Any], *names: str) -> None:
    for name in names:
        if type(tree[name]) is not int or tree[name] < 0:
            raise ValueError(f"`{name}` is {tree[name]!r}, expected a count")


@dataclass
class Found:
    """What one search did to a chunk.

    Args:
        norm: of the threat; of an unseen attack its group (`unseen.Unseen`).
        part: the search's label.
        attacked: how many images it got.
        fooled: flags of the whole chunk, true where it fooled the model.
        lost: images that it took for adversarial and that were right when asked again.
        cost: passes, those of asking again included.
        seconds: of the wall clock.
        notes: what the search had to say.
    """

    norm: str
    part: str
    attacked: int
    fooled: Tensor
    lost: int
    cost: Cost
    seconds: float
    notes: tuple[str, ...] = ()


@dataclass
class Chunk:
    """How far a chunk is.

    Args:
        number: its place.
        ids: of its samples.
        pixels: hash of its images.
        clean: flags, which images are classified right as they are.
        cost: of that, and of looking for signs.
        signs: warnings, text by kind.
        found: what the searches did, in the order of the plan.
    """

    number: int
    ids: list[int]
    pixels: str
    clean: Tensor
    cost: Cost
    signs: dict[str, str] = field(default_factory=dict)
    found: list[Found] = field(default_factory=list)

    def alive(self, norm: str | None) -> Tensor:
        """Flags: right as they are and fooled by no search under `norm`; None for any norm, unseen
        attacks left out."""
        flags = self.clean.clone()
        for found in self.found:
            if found.norm == norm or norm is None and not found.norm.startswith(UNSEEN):
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

    def path(self, number: int) -> Path:
        """The file of a chunk."""
        return self._folder / f"{number:05d}.json"

    def save(self, chunk: Chunk, images: dict[str, Tensor] | None = None) -> None:
        """Write a chunk; its adversarial `images`, norm -> (B, ...), before it."""
        if images:
            write_tensors(self._images(chunk.number), images, {"identity": self._identity})
        found = [asdict(one) | {"fooled": to_text(one.fooled)} for one in chunk.found]
        plain = asdict(chunk) | {"clean": to_text(chunk.clean), "found": found}
        head = {"format": FORMAT, "identity": self._identity}
        write_json(self.path(chunk.number), head | plain)

    def load(self, number: int, ids: list[int], plan: list[tuple[str, str]]) -> Chunk | None:
        """A chunk as it was saved; None where nothing was.

        Args:
            number: its place.
            ids: the samples that it must have.
            plan: (norm, label) of every search, in order.

        Raises:
            RunDirectoryError: the file cannot be read, or belongs to something else.
        """
        path = self.path(number)
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
            if chunk.number != number or chunk.ids != ids:
                raise ValueError("it holds other samples")
            if [(f.norm, f.part) for f in chunk.found] != plan[: len(chunk.found)]:
                raise ValueError("it holds other searches")
            if any(len(f) != len(ids) for f in (chunk.clean, *(f.fooled for f in chunk.found))):
                raise ValueError("a flag is missing")
            return chunk

    def images(self, chunk: Chunk, x: Tensor, norms: tuple[str, ...]) -> dict[str, Tensor]:
        """Saved adversarial images of a chunk, norm -> like `x`; `x` where nothing is fooled."""
        out = {norm: x.clone() for norm in norms}
        if not any(bool(found.fooled.any()) for found in chunk.found):
            return out
        path = self._images(chunk.number)
        fix = f"Move '{self.path(chunk.number)}' away to attack its images again."
        with naming(path, RunDirectoryError, "--out", "adversarial images", fix):
            with safe_open(path, framework="pt") as file:
                if (file.metadata() or {}).get("identity") != self._identity:
                    raise ValueError("it belongs to another evaluation")
                for norm in norms:
                    fooled = (chunk.clean & ~chunk.alive(norm)).to(x.device)
                    out[norm][fooled] = file.get_tensor(norm).to(x.device)[fooled]
        return out

    def _images(self, number: int) -> Path:
        return self._folder / f"{number:05d}.safetensors"


def _chunk(tree: dict[str, Any]) -> Chunk:
    for entry in tree["found"]:
        _check_counts(entry, "attacked", "lost")
        if not math.isfinite(entry["seconds"]):
            raise ValueError(f"`seconds` is {entry['seconds']!r}")
    texts = [*tree["signs"].values(), *(note for entry in tree["found"] for note in entry["notes"])]
    if not all(isinstance(text, str) for text in (tree["pixels"], *texts)):
        raise ValueError("`pixels`, `signs` and `notes` are texts")
    found = [
        Found(
            **{
                **entry,
                "fooled": to_flags(entry["fooled"]),
                "cost": cost_of(entry["cost"]),
                "notes": tuple(entry["notes"]),
            }
        )
        for entry in tree["found"]
    ]
    return Chunk(
        tree["number"],
        list(tree["ids"]),
        tree["pixels"],
        to_flags(tree["clean"]),
        cost_of(tree["cost"]),
        dict(tree["signs"]),
        found,
    )
