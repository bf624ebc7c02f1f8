"""The comparison with the official draws, on a few images of a tiny network."""

import json
from pathlib import Path

import pytest
import torch
from tiny_data import write_folder

from roli_fast import models


def test_both_sides_attack_the_same_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchattacks", reason="torchattacks, the oracle, is not installed")
    import official

    write_folder(tmp_path / "images", {name: 6 for name in "abcdefghij"})
    options = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 2}
    torch.manual_seed(0)
    model = models.create(models.Model("vit_tiny_patch16_224", options=options), num_classes=10)
    models.save_model(model, tmp_path / "net.safetensors", classes=tuple("abcdefghij"))
    flags = f"--root {tmp_path / 'images'} --size 16 --images 20 --steps 3 --queries 9"
    flags += f" --threads {torch.get_num_threads()} --dtypes float64 --out {tmp_path / 'out.json'}"
    program = ["official.py", str(tmp_path / "net.safetensors"), *flags.split()]
    monkeypatch.setattr("sys.argv", program)
    official.main()
    found = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    for norm in ("linf", "l2"):
        rows = found[f"{norm} float64"]["chain"]
        assert [*rows] == ["apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square"]
        assert all(row["differ"] == [] for row in rows.values())
