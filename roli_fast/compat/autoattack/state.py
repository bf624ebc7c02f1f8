"""The state file of compat.autoattack: what is finished, sample by sample; images beside it."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from roli_fast.errors import ArgumentError, describe
from roli_fast.evaluate.shares import to_flags, to_text
from roli_fast.files import naming, read_json, write_json, write_tensors

FORMAT = "roli_fast autoattack state, version 1"

FIX = "Name a new file; this one was not changed."


@dataclass
class Running:
    """An attack that was begun: in batches of `bs`, of which `batches` are done, of the samples
    that were robust when it was `begun`, bool (N,)."""

    attack: str
    bs: int
    begun: Tensor
    batches: int = 0


class EvaluationState:
    """One evaluation, saved after every batch, in one step each time.

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
        self.running: Running | None = None

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
            if tree["robust"] is not None:
                state.robust = to_flags(tree["robust"])
            if running := tree["running"]:
                state.running = Running(**running | {"begun": to_flags(running["begun"])})
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
        if self.path is None:
            return
        running = self.running and vars(self.running) | {"begun": to_text(self.running.begun)}
        tree = {
            "format": FORMAT,
            "asked": self.asked,
            "clean_accuracy": self.clean_accuracy,
            "run_attacks": self.finished,
            "running": running,
            "robust": None if self.robust is None else to_text(self.robust),
        }
        write_json(self.path, tree)

    def save_images(self, attack: str, place: Tensor, images: Tensor) -> None:
        """Keep what a batch found; `place` (n,) in the evaluated images (n, ...).

        The file is named by the first of them, which no other batch of the attack finds again,
        however large the batches are after a restart.
        """
        if self.path is not None and len(place):
            file = self._folder(self.path) / f"{attack}-{int(place[0]):08d}.safetensors"
            write_tensors(file, {"place": place, "images": images}, self.asked)

    def saved_images(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(place, images) of all that was kept and that the state counts as found: a process that
        is killed between the two leaves images that are found again, or not. Images that another
        evaluation left in the folder are passed over."""
        if self.path is None or self.robust is None:
            return
        for path in sorted(self._folder(self.path).glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                if file.metadata() != self.asked:
                    continue
                place, images = file.get_tensor("place"), file.get_tensor("images")
            counted = ~self.robust[place]
            yield place[counted], images[counted]

    @staticmethod
    def _folder(path: Path) -> Path:
        return path.with_name(path.name + ".images")


def digest(*tensors: Tensor) -> str:
    """A hash of the tensors' shapes, dtypes and bytes, 16 hexadecimal digits."""
    found = hashlib.blake2b(digest_size=8)
    for tensor in tensors:
        found.update(f"{tuple(tensor.shape)} {tensor.dtype};".encode())
        plain = tensor.detach().cpu().contiguous().reshape(-1)
        found.update(plain.view(torch.uint8).numpy().data)
    return found.hexdigest()
