"""What is measured beside the attacks, piece by piece: one small file each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roli_fast.errors import RunDirectoryError
from roli_fast.files import naming, read_json, write_json


@dataclass(frozen=True)
class Measurement:
    """A measurement in pieces that processes share and a resume does not repeat.

    Args:
        folder: where the pieces' files are.
        identity: of the evaluation; files of another one are refused.
    """

    folder: Path
    identity: str

    title = "measurement"
    """What its progress bar says."""

    @property
    def pieces(self) -> Sequence[str]:
        """Their names, which are also their files'."""
        raise NotImplementedError

    def images(self, piece: str) -> int:
        """How many images a piece has."""
        raise NotImplementedError

    def find(self, piece: str, check: Callable[[], None]) -> dict[str, Any]:
        """Measure a piece, in JSON's types; `check` is to be called now and then, a stop."""
        raise NotImplementedError

    def check_entry(self, piece: str, entry: dict[str, Any]) -> None:
        """Raise ValueError, KeyError or TypeError unless `entry` is one that `find` made."""
        raise NotImplementedError

    def report(self) -> Any:
        """What evaluation.json says, once every piece is measured; None without pieces."""
        raise NotImplementedError

    def plot(self, folder: Path) -> None:
        """Write pictures of it into the evaluation's folder, where there are any."""

    def measure(self, piece: str, check: Callable[[], None]) -> None:
        """Measure a piece and save it."""
        entry = {"identity": self.identity} | self.find(piece, check)
        write_json(self._path(piece), entry)

    def saved(self, piece: str) -> dict[str, Any] | None:
        """A piece as it was saved; None where it is not there yet.

        Raises:
            RunDirectoryError: the file cannot be read, or belongs to something else.
        """
        path = self._path(piece)
        if not path.exists():
            return None
        fix = "Nothing was changed. Move that file away to measure it again."
        expected = "the state that this evaluation wrote"
        with naming(path, RunDirectoryError, "--out", expected, fix):
            entry = read_json(path)
            if entry["identity"] != self.identity:
                raise ValueError("it belongs to another evaluation")
            self.check_entry(piece, entry)
            return entry

    def entry(self, piece: str) -> dict[str, Any]:
        """A piece that is measured by now."""
        found = self.saved(piece)
        assert found is not None, "every piece is measured by now"
        return found

    def _path(self, piece: str) -> Path:
        return self.folder / f"{piece}.json"
