"""What is kept of a chunk of images: one JSON file, replaced whole after every row of flags.

Adversarial images, where they are asked for, lie beside it and are written first.
"""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from roli_fast.engine import Cost
from roli_fast.errors import RunDirectoryError
from roli_fast.evaluate.shares import to_flags, to_text
from roli_fast.files import naming, read_json, write_json, write_tensors

FORMAT = 2


@dataclass
class Found:
    """One row of flags of a chunk.

    Args:
        group: rows of a group follow one another: a norm and its searches. The name of any other
            group has a space in it: "unseen ...", "curve ...", "shift ...".
        part: what tells a row from the others of its group: a search's label.
        attacked: how many images it got.
        fooled: flags of the whole chunk, true where the model is wrong by it.
        cost: passes, those of asking again included.
        lost: images that a search took for adversarial and that were right when asked again.
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
        self._folder = folder / "chunks"
        self._identity = identity

    def _path(self, name: str, kind: str = "json") -> Path:
        return self._folder / f"{name}.{kind}"

    def save(self, chunk: Chunk, images: dict[str, Tensor] | None = None) -> None:
        """Write a chunk; its adversarial `images`, norm -> (B, ...), before it."""
        if images:
            metadata = {"identity": self._identity}
            write_tensors(self._path(chunk.name, "safetensors"), images, metadata)
        found = [asdict(one) | {"fooled": to_text(one.fooled)} for one in chunk.found]
        tree = asdict(chunk) | {"clean": to_text(chunk.clean), "found": found}
        write_json(self._path(chunk.name), {"format": FORMAT, "identity": self._identity} | tree)

    def load(self, name: str, ids: list[int], plan: list[tuple[str, str]]) -> Chunk | None:
        """A chunk as it was saved; None where nothing was.

        Args:
            name: of the chunk.
            ids: the samples that it must have.
            plan: (group, part) of every row, in order.

        Raises:
            RunDirectoryError: the file cannot be read, or belongs to something else.
        """
        path = self._path(name)
        if not path.exists():
            return None
        fix = "Nothing was changed. Move that file away to attack its images again, or name a new "
        fix += "folder."
        expected = "the state that this evaluation wrote"
        with naming(path, RunDirectoryError, "--out", expected, fix):
            tree = read_json(path)
            if (tree.pop("format"), tree.pop("identity")) != (FORMAT, self._identity):
                raise ValueError("it belongs to another evaluation")
            found = [
                Found(**{**row, "fooled": to_flags(row["fooled"]), "cost": Cost(**row["cost"])})
                for row in tree["found"]
            ]
            made = {"clean": to_flags(tree["clean"]), "cost": Cost(**tree["cost"]), "found": found}
            chunk = Chunk(**{**tree, **made})
            names = [(one.group, one.part) for one in found]
            if (chunk.name, chunk.ids, names) != (name, ids, plan[: len(found)]):
                raise ValueError("it holds other samples or searches")
            if any(len(flags) != len(ids) for flags in (chunk.clean, *(f.fooled for f in found))):
                raise ValueError("a flag is missing")
            _check_values(chunk)
            return chunk

    def images(self, chunk: Chunk, x: Tensor, norms: tuple[str, ...]) -> dict[str, Tensor]:
        """Saved adversarial images of a chunk, norm -> like `x`; `x` where nothing is fooled."""
        out = {norm: x.clone() for norm in norms}
        fooled = {norm: (chunk.clean & ~chunk.alive(norm)).to(x.device) for norm in norms}
        if not any(bool(flags.any()) for flags in fooled.values()):
            return out
        path = self._path(chunk.name, "safetensors")
        fix = f"Move '{self._path(chunk.name)}' away to attack its images again."
        with naming(path, RunDirectoryError, "--out", "adversarial images", fix):
            with safe_open(path, framework="pt") as file:
                if (file.metadata() or {}).get("identity") != self._identity:
                    raise ValueError("it belongs to another evaluation")
                for norm, flags in fooled.items():
                    out[norm][flags] = file.get_tensor(norm).to(x.device)[flags]
        return out


def _check_values(chunk: Chunk) -> None:
    """Raise unless what the report adds up are numbers, and its notes texts."""
    counts = [count for one in (chunk, *chunk.found) for count in asdict(one.cost).values()]
    counts += [count for one in chunk.found for count in (one.attacked, one.lost)]
    if any(type(count) is not int or count < 0 for count in counts):
        raise ValueError("a count is no number")
    texts = [*chunk.signs.values(), *(note for one in chunk.found for note in one.notes)]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("a note is no text")
    if not all(math.isfinite(one.seconds) for one in chunk.found):
        raise ValueError("`seconds` is no number")
