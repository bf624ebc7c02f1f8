"""The comparison with the official draws, on a few images of a tiny network."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from shared_data import REPOSITORY
from tiny_data import write_folder

from roli_fast import models


def test_both_sides_attack_the_same_images(tmp_path: Path) -> None:
    pytest.importorskip("torchattacks", reason="torchattacks, the oracle, is not installed")
    write_folder(tmp_path / "images", {name: 6 for name in "abcdefghij"})
    options = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 2}
    torch.manual_seed(0)
    model = models.create(models.Model("vit_tiny_patch16_224", options=options), num_classes=10)
    models.save_model(model, tmp_path / "net.safetensors", classes=tuple("abcdefghij"))
    command = [sys.executable, str(REPOSITORY / "benchmarks" / "official.py")]
    command += [str(tmp_path / "net.safetensors"), "--root", str(tmp_path / "images")]
    command += ["--size", "16", "--images", "20", "--steps", "3", "--queries", "9"]
    command += ["--out", str(tmp_path / "found.json")]
    subprocess.run(command, check=True, capture_output=True)
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    for norm in ("linf", "l2"):
        rows = found[f"{norm} float64"]["chain"]
        assert [*rows] == ["apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square"]
        assert all(row["differ"] == [] for row in rows.values())
