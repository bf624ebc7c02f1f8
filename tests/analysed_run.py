"""A run of a second or two that is analysed: few digits, a tiny ViT, short attacks."""

import json
from pathlib import Path
from typing import Any

import pytest

from roli_fast.train import Experiment, analysis, run
from roli_fast.train.cli import parse

FLAGS = (
    "--data=digits --data.classes=5,6,7 --data.max_per_class=36 --threat.eps=0.04 "
    "--model.options.img_size=16 --model.options.patch_size=8 --model.options.embed_dim=16 "
    "--model.options.depth=2 --model.options.num_heads=2 --probe.attack.steps=1 "
    "--probe.epochs=1 --probe.optimizer.lr=0.1 --finetune.epochs=2 --finetune.attack.steps=1 "
    "--finetune.batch_size=32 --finetune.optimizer.lr=2e-3 --validation.steps=1 --test.steps=2 "
    "--analysis_images=70 --report=false --methods=roli"
).split()


def analysed(*more: str) -> Experiment:
    """The experiment."""
    return parse([*FLAGS, *more]).experiment


def run_analysed(folder: Path, *more: str, **options: Any) -> dict[str, Any]:
    """Run it in `folder`, or go on there; its analysis is whole, however little is trained."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(analysis, "SHARE", 1e9)
        return run(analysed(*more), folder, resume=folder.exists(), quiet=True, **options)


def analysis_of(folder: Path, method: str = "roli", seed: int = 0) -> dict[str, Any]:
    """What the run's analysis.json of a method says."""
    path = folder / f"seed-{seed}" / method / "analysis.json"
    return json.loads(path.read_text(encoding="utf-8"))
