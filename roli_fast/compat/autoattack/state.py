"""The state file of compat.autoattack: what is finished, attack by attack; images beside it."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from roli_fast.errors import ArgumentError, describe
from roli_fast.evaluate.shares import to_flags, to_text
from roli_fast.files import naming, read_json, read_tensors, write_json, write_tensors

FORMAT = "roli_fast autoattack state, version 2"

FIX = "Name a new file; this one was not changed."


class EvaluationState:
    """One evaluation, saved after every attack, in one step each time.

    RobustBench's `benchmark(aa_state_path=...)` reads it back by `from_disk` and takes the mean of
    `robust_flags`, which are therefore numbers and not bools.

    Args:
        path: the file, or None to save nothing.
        asked: what was evaluated, by name; a file that says otherwise belongs to another.
    """

    def __init__(self, path: Path | None, asked: Mapping[str, str]) -> None:
        self.path, self.asked = path, dict(asked)
        self.clean_accuracy = float("nan")
        self.finished: list[str] = []
        self.robust: Tensor | None = None

    @property
    def robust_flags(self) -> Tensor | None:
        """1 where a sample is robust, 0 elsewhere, (N,) fp32; None before the clean pass."""
        return None if self.robust is None else self.robust.float()

    @property
    def robust_accuracy(self) -> float:
        """The share of robust samples; NaN before the clean pass."""
        return float("nan") if self.robust is None else self.robust.double().mean().item()

    @property
    def attacks_to_run(self) -> set[str]:
        """The attacks that were asked for."""
        return set(filter(None, self.asked.get("attacks", "").split(", ")))

    @property
    def run_attacks(self) -> set[str]:
        """Those that are finished."""
        return set(self.finished)

    @classmethod
    def from_disk(cls, path: str | Path) -> "EvaluationState":
        """Read a state file.

        Raises:
            ArgumentError: it cannot be read, or is not one of this package's. It is left alone.
        """
        path = Path(path)
        with naming(path, ArgumentError, "state_path", "a state file of this package", FIX):
            tree = read_json(path)
            if tree["format"] != FORMAT:
                raise ValueError(f"format {tree['format']!r}")
            state = cls(path, tree["asked"])
            state.clean_accuracy, state.finished = tree["clean_accuracy"], tree["run_attacks"]
            state.robust = None if tree["robust"] is None else to_flags(tree["robust"])
            return state

    @classmethod
    def open(cls, path: Path | None, asked: Mapping[str, str]) -> "EvaluationState":
        """The state in this file if there is one, which must be of the same evaluation; or a new
        one, written at once, so that a path that cannot be written fails before any work.

        Raises:
            ArgumentError: another evaluation's file.
        """
        if path is None or not path.exists():
            state = cls(path, asked)
            state.to_disk()
            return state
        state = cls.from_disk(path)
        if differ := [name for name in asked if asked[name] != state.asked.get(name)]:
            got = f"{path}, which has other {', '.join(differ)}"
            raise ArgumentError(describe("state_path", "the state of this evaluation", got, FIX))
        return state

    def to_disk(self) -> None:
        """Replace the file."""
        if self.path is not None:
            tree = {
                "format": FORMAT,
                "asked": self.asked,
                "clean_accuracy": self.clean_accuracy,
                "run_attacks": self.finished,
                "robust": None if self.robust is None else to_text(self.robust),
            }
            write_json(self.path, tree)

    def finish(self, attack: str, place: Tensor, images: Tensor) -> None:
        """An attack is through: save the images (n, ...) that it found, which lie at `place` (n,)
        among the evaluated ones, and then the state."""
        self.finished.append(attack)
        if self.path is not None:
            write_tensors(self._images(attack), {"place": place, "images": images}, {})
        self.to_disk()

    def saved_images(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(place, images) of each finished attack."""
        for attack in self.finished if self.path is not None else ():
            saved = read_tensors(self._images(attack))
            yield saved["place"], saved["images"]

    def _images(self, attack: str) -> Path:
        assert self.path is not None
        return self.path.with_name(self.path.name + ".images") / f"{attack}.safetensors"
