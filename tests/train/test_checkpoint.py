"""The resume file: whole, safe, and bit for bit."""

from pathlib import Path

import pytest
import torch
from torch import nn

from roli_fast.errors import CheckpointError
from roli_fast.train.checkpoint import (
    Progress,
    changing_tensors,
    load_resume,
    save_resume,
)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2))


def test_a_frozen_backbone_is_not_stored() -> None:
    statistics = {f"1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    assert set(changing_tensors(net(), ["3.weight", "3.bias"])) == statistics | {
        "3.weight",
        "3.bias",
    }


@pytest.mark.parametrize("damage", ["truncated", "empty", "other", "words"])
def test_a_damaged_file_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "resume.pt"
    save_resume(path, Progress(), {"model": {}}, {})
    content = path.read_bytes()
    path.write_bytes({"truncated": content[: len(content) // 2]}.get(damage, b"x" * 100))
    if damage == "empty":
        path.write_bytes(b"")
    if damage == "words":
        torch.save({"progress": {"epoch": 1, "stride": 2}}, path)
    with pytest.raises(CheckpointError, match=r"resume\.pt': .*Delete the stage's folder"):
        load_resume(path)
