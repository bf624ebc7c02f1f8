"""Writes that are whole or absent: a temporary file beside the target, fsync, rename."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from roli_fast.errors import WriteError

ROOM = "What was saved before is whole: make room."
"""Follows a `WriteError` of a run."""

_UMASK = os.umask(0)
os.umask(_UMASK)


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` by `data` in one step."""
    with _replacing(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by `value` as indented JSON, in one step."""
    write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Replace `path` by a safetensors file, in one step."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with _replacing(path) as temporary:
        save_file(_unshared(plain), str(temporary), metadata=metadata)


def _unshared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """safetensors refuses tensors that share memory (tied weights): give each its own."""
    seen: set[int] = set()
    out = {}
    for name, tensor in tensors.items():
        pointer = tensor.untyped_storage().data_ptr()
        out[name] = tensor.clone() if pointer in seen and tensor.numel() else tensor
        seen.add(pointer)
    return out


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Within: what the system refuses, on a full disk say, is a `WriteError` that names `path`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise WriteError(f"'{path}' could not be written: {error}") from error


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary file that takes the place of `path`, or is removed after an exception."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            commit(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def commit(temporary: Path, path: Path) -> None:
    """Let a finished file take the place of `path`, in one step that survives a power cut."""
    os.chmod(temporary, 0o666 & ~_UMASK)  # safetensors makes its files private
    with open(temporary, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
    if os.name == "posix":  # the rename itself must survive a power cut
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
