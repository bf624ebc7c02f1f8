"""Where a run's numbers go, and how long it says that it will take."""

import logging
from pathlib import Path

import pytest
from analysed_run import run_analysed
from small import small
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from roli_fast.evaluate import attack_passes
from roli_fast.train.context import Remaining
from roli_fast.train.stage import Stage


def test_tensorboard_has_methods_in_one_chart_settings_and_examples(tmp_path: Path) -> None:
    """A run a stage with tags of the same names, and for each method what it was given."""
    run_analysed(tmp_path / "run", "--methods=roli,ranli", "--probe.epochs=2")
    board = tmp_path / "run/tensorboard/seed-0"

    def tags(run: str) -> dict[str, list[str]]:
        found = EventAccumulator(str(board / run))
        found.Reload()
        return found.Tags()

    stages = [tags(run)["scalars"] for run in ("roli/probe", "roli/finetune", "ranli/ranli")]
    assert stages[0] == stages[1] == stages[2]
    assert {"train/loss", "train/robust_accuracy", "validation/robust_accuracy"} < set(stages[0])
    probe = EventAccumulator(str(board / "roli/probe"))
    probe.Reload()
    assert [event.step for event in probe.Scalars("train/loss")] == [0, 1]
    for method in ("roli", "ranli"):
        shown = tags(method)
        assert {"test/clean_accuracy", "test/pgd-2_accuracy"} <= set(shown["scalars"])
        assert shown["images"] == ["examples/clean", "examples/adversarial"]
    written = b"".join(path.read_bytes() for path in board.glob("roli/events.*"))
    assert b"finetune.optimizer.lr" in written and b"probe.attack.steps" in written


RISING = [
    "--probe.eps_schedule=ramp",
    "--probe.eps_schedule.start=2/5",
    "--probe.eps_schedule.end=4/5",
]


def test_what_a_stage_takes_by_hand() -> None:
    """Two of five epochs are clean. PGD-3: 3 forwards and 3 backwards an image, and one look at
    what came out of it where the last step's loss is asked for; an update of the head alone is 1,
    of all weights 3."""
    experiment = small("--probe.attack.steps=3", "--probe.epochs=5", *RISING)
    splits, probe = experiment.data.load(), experiment.probe
    assert probe.attack is not None
    attack = attack_passes(probe.attack.under(experiment.threat), splits.num_classes)
    assert attack in (6, 7)
    images, val = len(splits.train), len(splits.val)
    looks = [probe.attack.under(experiment.threat)]
    passes = probe.passes(experiment.threat, looks, splits)
    assert passes == (1 + attack, images * (5 + 3 * attack) + 5 * val * (1 + attack))
    full = Stage(epochs=4, attack=None, validate_every=3)
    assert full.passes(experiment.threat, looks, splits) == (3, 4 * 3 * images + 2 * val)
    assert experiment.lp.passes(experiment.threat, looks, splits)[1] == images + val


def test_the_rest_is_told_once_by_the_first_seconds(caplog: pytest.LogCaptureFixture) -> None:
    """20 images of 5 passes in 10 seconds, a tenth of a second a pass: 0.9 * 1000 and 4000 of the
    next stage are 490 seconds."""
    probe = {"seed": 0, "method": "roli", "stage": "probe"}
    keys = [tuple(probe.values()), (0, "roli", "finetune")]
    remaining = Remaining(dict(zip(keys, [(5.0, 1000.0), (20.0, 4000.0)], strict=True)), stages=3)
    assert remaining.title(probe) == "stage 2 of 3, seed 0 roli/probe"
    assert remaining.title(probe | {"stage": "other"}) == "seed 0 roli/other"
    with caplog.at_level(logging.INFO):
        for left in (0.95, 0.9, 0.8, 0.7):
            remaining.measured(probe, 10, 5.0, left)
    assert caplog.messages == [
        "about 8 min 10 s of training and validation are left, by the first 10 seconds of updates"
    ]
