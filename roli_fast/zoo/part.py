"""A download that is not whole yet, and a note of what it is a part of."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roli_fast.files import read_json, write_json


@dataclass(frozen=True)
class Part:
    """The bytes that have arrived, at `path`, and beside them which version of which file."""

    path: Path

    @property
    def size(self) -> int:
        """Bytes that are here."""
        return self.path.stat().st_size if self.path.is_file() else 0

    @property
    def version(self) -> str | None:
        """The server's name of the version: its ETag or date."""
        return self._read().get("version")

    @property
    def total(self) -> int | None:
        """Bytes of the whole file, where the server told."""
        return self._read().get("total")

    def usable(self, url: str) -> int:
        """How many bytes can be kept: none that another address or no known version gave."""
        known = self._read().get("url") == url and self.version
        return self.size if known and self.size <= (self.total or self.size) else 0

    def describe(self, url: str, version: str | None, total: int | None) -> None:
        """Note what the bytes belong to."""
        write_json(self._note, {"url": url, "version": version, "total": total})

    def drop(self) -> None:
        """Forget it."""
        self.path.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)

    @property
    def _note(self) -> Path:
        return self.path.with_name(f"{self.path.name}.json")

    def _read(self) -> dict[str, Any]:
        try:
            note = read_json(self._note)
        except (OSError, ValueError):
            return {}
        return note if isinstance(note, dict) else {}
