"""RoLI on real images, from the command line, with a robustly pretrained backbone."""

import json
from pathlib import Path
from typing import Any

import pytest
from shared_data import SharedData, robust_vit

from roli_fast.train.__main__ import main

MODEL = (
    "--model.options.img_size=32 --model.options.patch_size=4 --model.options.embed_dim=128 "
    "--model.options.depth=6 --model.options.num_heads=4 --model.options.class_token=false "
    "--model.options.global_pool=avg --model.mean=0.485,0.456,0.406 --model.std=0.229,0.224,0.225"
).split()

SHORT = (
    "--threat.eps=4/255 --methods=roli --probe.epochs=4 --probe.attack.steps=1 --test.steps=4 "
    "--probe.optimizer.name=adamw --probe.optimizer.lr=2e-2 --probe.optimizer.weight_decay=0 "
    "--probe.batch_size=32 --finetune.epochs=1 --finetune.attack.steps=2 "
    "--finetune.optimizer.lr=1e-4 --finetune.batch_size=32 --validation.steps=1 "
    "--probe.validate_every=4 --analysis_images=40"
).split()


Told = pytest.CaptureFixture[str]


def train(folder: Path, told: Told, *flags: str) -> dict[str, Any]:
    weights = ["--model.weights", str(robust_vit())]
    assert main(["--run_dir", str(folder), *weights, *MODEL, *SHORT, *flags]) == 0
    printed = told.readouterr().out
    assert "roli" in printed and "head norm" in printed
    assert (folder / "seed-0/roli/analysis.json").is_file()
    assert (folder / "report.html").stat().st_size > 10_000
    return json.loads((folder / "summary.json").read_text())


@pytest.mark.parametrize("kind", ["cifar10 folders", "caltech101 lists"])
def test_roli_learns_real_images(
    shared_data: SharedData, tmp_path: Path, capsys: Told, kind: str
) -> None:
    """Few images, few steps: enough to be far above chance, clean and under attack."""
    if kind == "cifar10 folders":
        root = shared_data.cifar10(per_class=12)
        flags = ["--data=image_folder", f"--data.root={root}", "--data.max_per_class=12"]
        classes = 10
    else:
        root = shared_data.caltech101()
        flags = ["--data=json_splits", f"--data.root={root}", "--data.max_per_class=1"]
        classes = 101
    summary = train(tmp_path / "run", capsys, *flags, "--data.image_size=32")
    test = summary["methods"]["roli"]["test"]
    assert len(summary["classes"]) == classes
    clean, robust = test["clean_accuracy"], test["robust_accuracy"]["pgd-4"]
    sure = 3 * (1 / classes * (1 - 1 / classes) / test["images"]) ** 0.5
    assert clean > 1 / classes + sure
    assert 1 / classes < robust <= clean
