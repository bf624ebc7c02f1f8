"""Files that people or a damaged disk may have changed, and writes that are whole or absent.

Reading: `read_json` and `parse_json` are the only places that parse JSON; what they raise, and what
a wrong value raises later, `naming` turns into one error that names the file.
Files of tensors are read without executing anything in them.
Writing: a temporary file beside the target, fsync, rename.
"""

import argparse
import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from roli_fast.errors import CheckpointError, RoliFastError, WriteError, describe

ROOM = "What was saved before is whole: make room."
"""Follows a `WriteError` of a run."""

_SCALAR: Any = np.float64(0).__reduce__()[0]


def _plain_dict(_factory: object = None) -> dict[Any, Any]:
    return {}


HARMLESS: list[Any] = [
    argparse.Namespace,  # timm's train.py keeps its arguments so
    type(Path()),
    *(list, dict, set, int, float),
    (_plain_dict, "collections.defaultdict"),  # torch fills no other kind of dict
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    np.dtype,
    *(type(np.dtype(code)) for code in "?bhilqBHILQefd"),
]
"""What stands beside the tensors in other people's checkpoints, and executes nothing."""

_UMASK = os.umask(0)
os.umask(_UMASK)

DEEPEST = 100
"""Levels of a tree; Python's own limit ends in a RecursionError wherever a tree is walked."""

LARGEST = 2**64
"""Of integers, not included: float() of some larger ones raises."""


@contextlib.contextmanager
def naming(
    path: str | Path, kind: type[RoliFastError], name: str, expected: str, fix: str = ""
) -> Iterator[None]:
    """Raise whatever a damaged file makes of the block as one error that names the file.

    Args:
        path: the file that is read; an error of ours that names it already passes as it is.
        kind: of the error.
        name: of the argument, or of what the file is, that the message begins with.
        expected: what the file should have been.
        fix: what to do.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, RoliFastError) and str(path) in str(error):
            raise
        raise kind(describe(name, expected, f"'{path}': {told(error)}", fix)) from error


def told(error: Exception) -> str:
    """What is wrong, in a line that is not longer than a screen's."""
    text = " ".join(str(error).split()).removesuffix(".")
    if isinstance(error, KeyError):
        text = f"{text} is missing"
    elif not text or not isinstance(error, (ValueError, OSError)):
        text = f"{type(error).__name__}: {text}".removesuffix(": ")
    return text if len(text) <= 300 else f"{text[:300]}..."


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, with a byte order mark or without.

    Raises:
        OSError: there is none, or it cannot be read.
        ValueError: it is no text, or a pipe or device, which might never end.
    """
    if not path.is_file() and path.stat():  # an absent file raises here and says so
        raise ValueError("it is not a regular file")
    return path.read_text(encoding="utf-8-sig")


def read_json(path: Path) -> Any:
    """The value of a JSON file; inside `naming`, which says whose file it is.

    Raises:
        OSError, ValueError: as `read_text` and `parse_json`.
    """
    return parse_json(read_text(path))


def parse_json(text: str, **hooks: Any) -> Any:
    """The value of a JSON text; `hooks` are those of `json.loads`.

    Raises:
        ValueError: it is none, or holds what `check_plain` refuses.
    """
    try:
        tree = json.loads(text, **hooks)
    except RecursionError:
        raise ValueError(f"nested more than {DEEPEST} deep") from None
    check_plain(tree)
    return tree


def check_plain(tree: Any) -> None:
    """Raise ValueError for a tree so deep, or an integer so large, that using it would raise."""
    level: list[tuple[Any, Any]] = [("it", tree)]
    for _ in range(DEEPEST):
        inner: list[tuple[Any, Any]] = []
        for field, value in level:
            if isinstance(value, dict):
                inner += value.items()
            elif isinstance(value, (list, tuple)):
                inner += [(field, one) for one in value]
            elif isinstance(value, int) and abs(value) >= LARGEST:
                bits = value.bit_length()
                raise ValueError(f"`{field}` is an integer of {bits} bits, at most 64 are read")
        if not (level := inner):
            return
    raise ValueError(f"nested more than {DEEPEST} deep")


def read_tensors(path: Path) -> Any:
    """What a .safetensors file or a file of torch.save holds; no code in it is executed.

    Raises:
        CheckpointError: it is cut off or no such file; the message says what it is instead.
    """
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        with torch.serialization.safe_globals(HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file makes torch and safetensors raise
        raise CheckpointError(unreadable(path, error)) from error


def unreadable(path: Path, error: Exception) -> str:
    """Why a file of tensors cannot be read. torch's own advice is to switch its protection off."""
    text = str(error)
    head = path.read_bytes()[:64].lstrip()
    reason = (text.splitlines() or [type(error).__name__])[0]
    fix = "It may be truncated: copy or download it again."
    if head[:1] == b"<":
        reason, fix = "an HTML page", "The address answered with a page: download the file itself."
    elif head.startswith(b"version https://git-lfs"):
        reason, fix = "a pointer of git-LFS", "`git lfs pull` brings the file itself."
    elif "TorchScript" in text:
        reason = "a TorchScript archive, which holds code"
        fix = "Save its tensors alone: torch.save(torch.jit.load(FILE).state_dict(), ...)."
    elif found := re.search(r"GLOBAL (\S+)|got <class '(\S+)'>", text):
        reason = f"it is whole, and holds {found[1] or found[2]}, which might execute code"
        fix = "If you trust it, save its state dict alone: torch.save(model.state_dict(), ...)."
    elif "weights_only" in text:
        reason = "no file of torch.save"
    got = f"'{path}' ({path.stat().st_size} bytes): {reason}"
    return describe("weights", "a complete file of tensors", got, fix)


def write_bytes(path: Path, data: bytes | memoryview) -> None:
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
