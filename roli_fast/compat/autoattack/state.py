"""The state file of compat.autoattack: what is finished, sample by sample; images beside it."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from roli_fast.errors import ArgumentError, describe
from roli_fast.files import naming, read_json, write_json, write_tensors

FORMAT = "roli_fast autoattack state, version 1"


@dataclass
class Running:
    """An attack that was begun: in batches of `bs`, of which `batches` are done, of the samples
    that were robust when it was `begun`, bool (N,)."""

    attack: str
    bs: int
    begun: Tensor
    batches: int = 0

    def tree(self) -> dict[str, Any]:
        """As it is saved."""
        return vars(self) | {"begun": _digits(self.begun)}

    @staticmethod
    def of(tree: Mapping[str, Any] | None) -> "Running | None":
        """From what was saved."""
        if tree is None:
            return None
        attack, bs, batches = str(tree["attack"]), int(tree["bs"]), int(tree["batches"])
        return Running(attack, bs, _flags(tree["begun"]), batches)


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
        fix = "Name a new file; this one was not changed."
        with naming(path, ArgumentError, "state_path", "a state file of this package", fix):
            tree = read_json(path)
            if tree["format"] != FORMAT:
                raise ValueError(f"format {tree['format']!r}")
            state = cls(path, tree["asked"])
            state.clean_accuracy = float(tree["clean_accuracy"])
            state.finished = [str(name) for name in tree["run_attacks"]]
            state.robust = None if tree["robust"] is None else _flags(tree["robust"])
            state.running = Running.of(tree["running"])
            kept = [state.robust, state.running.begun if state.running else state.robust]
            if len({-1 if flags is None else len(flags) for flags in kept}) > 1:
                raise ValueError("flags of different numbers of images")
            return state

    @classmethod
    def open(cls, path: Path | None, asked: Mapping[str, str], images: int) -> "EvaluationState":
        """The state in this file if there is one, which must be of the same evaluation; or a new
        one, written at once, so that a path that cannot be written fails before any work.

        Raises:
            ArgumentError: another evaluation's file, or no file but images of an earlier one, which
                would be taken for what this evaluation finds.
        """
        if path is None or not path.exists():
            state = cls(path, asked)
            if path is not None and any(state._folder.glob("*.safetensors")):
                got = f"images of an earlier evaluation in {state._folder}, and no {path}"
                fix = "Remove that folder, or name a new file; nothing was changed."
                raise ArgumentError(describe("state_path", "a new state", got, fix))
            state.to_disk()
            return state
        state = cls.from_disk(path)
        differ = [k for k in {**asked, **state.asked} if asked.get(k) != state.asked.get(k)]
        if state.robust is not None and len(state.robust) != images:
            differ.append(f"flags ({len(state.robust)} for {images} images)")
        if differ:
            got = f"{path}, which has other {', '.join(differ)}"
            fix = "Name a new file; this one was not changed."
            raise ArgumentError(describe("state_path", "the state of this evaluation", got, fix))
        return state

    def to_disk(self) -> None:
        """Replace the file."""
        if self.path is None:
            return
        tree = {
            "format": FORMAT,
            "asked": self.asked,
            "clean_accuracy": self.clean_accuracy,
            "run_attacks": self.finished,
            "running": None if self.running is None else self.running.tree(),
            "robust": None if self.robust is None else _digits(self.robust),
        }
        write_json(self.path, tree)

    def save_images(self, attack: str, place: Tensor, images: Tensor) -> None:
        """Keep what a batch found; `place` (n,) in the evaluated images (n, ...).

        The file is named by the first of them, which no other batch of the attack finds again,
        however large the batches are after a restart.
        """
        if self.path is not None and len(place):
            file = self._folder / f"{attack}-{int(place[0]):08d}.safetensors"
            write_tensors(file, {"place": place, "images": images}, {})

    def saved_images(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(place, images) of all that was kept and that the state counts as found: a process that
        is killed between the two leaves images that are found again, or not.

        Raises:
            ArgumentError: one of the files cannot be read.
        """
        if self.path is None:
            return
        for file in sorted(self._folder.glob("*.safetensors")):
            try:
                tensors = load_file(file)
                place, images = tensors["place"], tensors["images"]
            except (SafetensorError, OSError, KeyError) as error:
                fix = "Remove it: its images are lost, their flags are in the state."
                raise ArgumentError(
                    describe("state_path", "images beside the state", f"{file}: {error}", fix)
                ) from error
            counted = torch.ones_like(place, dtype=torch.bool)
            if self.robust is not None:
                counted = ~self.robust[place]
            yield place[counted], images[counted]

    @property
    def _folder(self) -> Path:
        assert self.path is not None
        return self.path.with_name(self.path.name + ".images")


def digest(*tensors: Tensor) -> str:
    """A hash of the tensors' shapes, dtypes and bytes, 16 hexadecimal digits."""
    found = hashlib.blake2b(digest_size=8)
    for tensor in tensors:
        found.update(f"{tuple(tensor.shape)} {tensor.dtype};".encode())
        plain = tensor.detach().cpu().contiguous().reshape(-1)
        found.update(plain.view(torch.uint8).numpy().data)
    return found.hexdigest()


def _digits(flags: Tensor) -> str:
    return "".join("01"[flag] for flag in flags.tolist())


def _flags(digits: str) -> Tensor:
    if set(digits) - {"0", "1"}:
        raise ValueError("flags that are neither 0 nor 1")
    return torch.tensor([digit == "1" for digit in digits], dtype=torch.bool)
