"""Writes are whole or absent; a damaged file is one error that names it."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from roli_fast import files
from roli_fast.errors import CheckpointError
from roli_fast.files import naming, read_json, write_bytes, write_json, write_tensors


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_file_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its bytes are on disk before its name."""
    path, calls = tmp_path / "new" / "folder" / "file.json", list[str]()
    write_bytes(path, b"a much longer first content")
    real_sync, real_replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (calls.append("fsync"), real_sync(file)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("replace"), real_replace(a, b)))
    write_json(path, {"b": [1, 2.5], "a": None})
    assert json.loads(path.read_text()) == {"b": [1, 2.5], "a": None}
    assert path.read_bytes().endswith(b"}\n") and names(path.parent) == {"file.json"}
    assert calls == ["fsync", "replace", "fsync"]


def test_tensors_round_trip_with_metadata(tmp_path: Path) -> None:
    tensors = {
        "half": torch.randn(3, 2).bfloat16(),
        "scalar": torch.tensor(7),
        "empty": torch.zeros(0, 4),
        "other layout": torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        "transposed": torch.randn(2, 3).t(),
        "parameter": torch.nn.Parameter(torch.randn(2)),
    }
    weight = torch.randn(4, 3)
    tensors |= {"a": weight, "tied": weight, "rows": weight[2:], "one": weight[0]}  # in full
    path = tmp_path / "t.safetensors"
    write_tensors(path, tensors, {"key": "value"})
    loaded = load_file(path)
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor) and loaded[name].dtype == tensor.dtype
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"key": "value"}


def _full_disk(*_args: Any, **_options: Any) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("stage", ["fsync", "replace"])
def test_a_failed_write_keeps_the_old_file_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")
    monkeypatch.setattr(os, stage, _full_disk)
    with pytest.raises(OSError, match="No space"):
        write_bytes(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old" and names(tmp_path) == {"file"}


def test_a_write_that_fails_in_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.safetensors"
    write_tensors(path, {"a": torch.ones(2)}, {})

    def half(_tensors: Any, target: str, **_options: Any) -> None:
        Path(target).write_bytes(b"half a file")
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "save_file", half)
    with pytest.raises(KeyboardInterrupt):
        write_tensors(path, {"a": torch.zeros(2)}, {})
    monkeypatch.undo()
    with pytest.raises((SafetensorError, TypeError)):
        write_tensors(path, {"a": torch.zeros(2)}, {"key": 3})  # pyright: ignore
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_json(path, {"a": torch.zeros(2)})
    assert torch.equal(load_file(path)["a"], torch.ones(2)) and names(tmp_path) == {path.name}


DAMAGED = {
    "empty": b"",
    "no text": b'{"a": "\xff"}',
    "cut": b'{"a": 1',
    "deep": b"[" * 100_000,
    "5,000 digits": b"[" + b"1" * 5_000 + b"]",
    "no number of 64 bits": b'{"a": [1e400, %d]}' % 10**400,
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_json_is_one_error_with_the_file(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "card.json"
    path.write_bytes(DAMAGED[damage])
    with pytest.raises(ValueError):
        read_json(path)
    with (
        pytest.raises(CheckpointError, match=r"^`card`: expected JSON, got '.*card\.json': [\w`']"),
        naming(path, CheckpointError, "card", "JSON"),
    ):
        read_json(path)


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "x.json")
    with pytest.raises(ValueError, match="not a regular file"):
        read_json(tmp_path / "x.json")
    with pytest.raises(FileNotFoundError, match="none"):
        read_json(tmp_path / "none")


def test_whole_json_is_read(tmp_path: Path) -> None:
    tree = {"a": [1, -(2**64) + 1, 0.5, None, True, "\ud800"], "b": {}}
    write_json(tmp_path / "x.json", tree)
    assert read_json(tmp_path / "x.json") == tree
    write_bytes(tmp_path / "x.json", b'\xef\xbb\xbf{"a": Infinity}')
    assert read_json(tmp_path / "x.json") == {"a": float("inf")}


def test_an_error_that_names_the_file_passes(tmp_path: Path) -> None:
    for text, count in ((f"'{tmp_path}' is empty", 1), ("`rank`: expected 1, got 2.", 1)):
        with pytest.raises(CheckpointError) as caught, naming(tmp_path, CheckpointError, "a", "b"):
            raise CheckpointError(text)
        assert str(caught.value).count(str(tmp_path)) == count and text in str(caught.value)
