"""Runs that keep and that lose what a single step finds, and the alarm: a small network of
convolutions on digits, from a few clean epochs."""

import json
from pathlib import Path
from typing import Any

import pytest
from small import records
from torch import nn

from roli_fast.train import run
from roli_fast.train.cli import parse

FLAGS = (
    "--methods=scratch --data=digits --data.image_size=16 --model.name=test_collapse:network "
    "--model.head=9 --threads=1 --pretrain.batch_size=64 --pretrain.optimizer.lr=0.002 "
    "--pretrain.optimizer.weight_decay=0 --pretrain.warmup_epochs=1 --pretrain.validation_share=1 "
    "--validation.steps=10 --test.steps=2 --analysis_images=0 --report=false"
).split()


def network() -> nn.Module:
    """16x16 pixels to ten logits."""
    widths, layers = (3, 16, 32, 64), list[nn.Module]()
    for stride, inputs, outputs in zip((1, 2, 2), widths, widths[1:], strict=False):
        layers += [nn.Conv2d(inputs, outputs, 3, stride, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(1024, 64), nn.ReLU(), nn.Linear(64, 10))


def trained(folder: Path, epochs: int, *more: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The stage's result and its epochs, four of them on clean images."""
    clean = [f"--pretrain.eps_schedule.{end}={4 / epochs}" for end in ("start", "end")]
    flags = [*FLAGS, f"--pretrain.epochs={epochs}", "--pretrain.eps_schedule=ramp", *clean, *more]
    run(parse(flags).experiment, folder, resume=False, quiet=True)
    (result,) = folder.glob("seed-*/scratch/stage-1-pretrain/result.json")
    return json.loads(result.read_text()), records(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attack", "eps"), [("fgsm", 0.05), ("rs-fgsm", 0.05), ("n-fgsm", 0.1), ("sora", 0.1)]
)
@pytest.mark.parametrize("seed", range(5))
def test_a_run_that_gains_is_left_alone(tmp_path: Path, attack: str, eps: float, seed: int) -> None:
    flags = (f"--pretrain.attack={attack}", f"--threat.eps={eps}", f"--seeds={seed}")
    stage, epochs = trained(tmp_path / "run", 40, *flags)
    assert not stage["alarms"]
    found = [one["validation_robust_accuracy"] for one in epochs]
    assert found[-1] > max(0.6, max(found) - 0.06)  # nothing was lost


@pytest.mark.slow
def test_the_alarm_comes_before_the_accuracy_is_gone_and_saves_the_run(tmp_path: Path) -> None:
    flags = ("--pretrain.attack=fgsm", "--threat.eps=0.15")
    _, lost = trained(tmp_path / "lost", 60, *flags, "--on_collapse=ignore")
    accuracies = [one["validation_robust_accuracy"] for one in lost]
    assert max(accuracies) > 0.3 and accuracies[-1] < 0.1
    stage, saved = trained(tmp_path / "saved", 60, *flags)
    (alarm,) = stage["alarms"]
    epoch = int(alarm.split("epoch ")[1].split(":")[0])
    assert "alignment fell" in alarm and accuracies[epoch] > max(accuracies) / 2
    assert saved[-1]["validation_robust_accuracy"] > 0.4
