"""A run that takes a second or two: few digits, a tiny ViT, short attacks."""

import json
import os
import signal
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from roli_fast.train import Experiment, run
from roli_fast.train.cli import parse
from roli_fast.train.loop import StageLoop

if find_spec("sklearn") is None:  # on a bare GPU machine, noise is as good as digits
    noise = torch.rand(1797, 64, generator=torch.Generator().manual_seed(0)).mul(16).round()
    given = noise.numpy(), torch.arange(1797).numpy() % 10
    digits = SimpleNamespace(load_digits=lambda **_: given)
    sys.modules |= {"sklearn": digits, "sklearn.datasets": digits}  # type: ignore[dict-item]

FLAGS = (
    "--data=digits --data.classes=5,6,7 --data.max_per_class=24 --threat.eps=0.04 "
    "--model.options.img_size=16 --model.options.patch_size=8 --model.options.embed_dim=16 "
    "--model.options.depth=2 --model.options.num_heads=2 --probe.attack.steps=2 "
    "--probe.epochs=2 --probe.optimizer.lr=0.1 --finetune.epochs=3 --finetune.attack.steps=2 "
    "--finetune.batch_size=32 --finetune.optimizer.lr=2e-3 --validation.steps=2 --test.steps=3 "
    "--analysis_images=0 --report=false"
).split()


RESNET = ["--model.name=resnet18"] + [
    "--model.options={'layers': [1,1,1,1], 'channels': [8,8,16,16], 'stem_width': 8}"
]
"""A tiny network with BatchNorm."""


def small(*more: str) -> Experiment:
    """The experiment; another network has options of its own."""
    other = any(flag.startswith("--model.name") for flag in more)
    flags = [flag for flag in FLAGS if not (other and flag.startswith("--model.options"))]
    return parse([*flags, *more]).experiment


def run_small(folder: Path, *more: str) -> dict[str, Any]:
    """Run it in `folder`."""
    return run(small(*more), folder, resume=folder.exists(), quiet=True)


def weights(folder: Path, pattern: str = "**/*.safetensors") -> dict[str, dict[str, torch.Tensor]]:
    """Every weight file below `folder`, by its relative path."""
    return {str(p.relative_to(folder)): load_file(p) for p in sorted(folder.glob(pattern))}


def assert_same_weights(first: Path, second: Path) -> None:
    """The same files with the same bits."""
    a, b = weights(first), weights(second)
    assert a.keys() == b.keys()
    for path, tensors in a.items():
        assert tensors.keys() == b[path].keys()
        for name, tensor in tensors.items():
            assert torch.equal(tensor, b[path][name]), f"{path}: {name}"


CLOCK = ("train_images_per_second", "data_wait_share")


def records(folder: Path) -> list[dict[str, Any]]:
    """The metrics of a run without wall-clock values."""
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{name: v for name, v in row.items() if name not in CLOCK} for row in rows]


def stop_at(monkeypatch: pytest.MonkeyPatch, update: int) -> None:
    """SIGTERM in that update of what runs next, counted from 1."""
    original, count = StageLoop._update, 0

    def stop(self: StageLoop, epoch: int, batch: Any) -> torch.Tensor:
        nonlocal count
        count += 1
        if count == update:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, epoch, batch)

    monkeypatch.setattr(StageLoop, "_update", stop)


def before_stages(monkeypatch: pytest.MonkeyPatch, look: Callable[[StageLoop], object]) -> None:
    """Call `look` before each stage trains."""
    original = StageLoop.run

    def run(self: StageLoop) -> Any:
        look(self)
        return original(self)

    monkeypatch.setattr(StageLoop, "run", run)
