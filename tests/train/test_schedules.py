"""Learning-rate schedules, worked out by hand, and how a configuration names them."""

import math
from pathlib import Path

import pytest
from small import small

from roli_fast.errors import ArgumentError, ConfigError
from roli_fast.train.cli import parse
from roli_fast.train.experiment import SCHEMA
from roli_fast.train.optim import SCHEDULES, Cosine, Schedule, Step, Triangle
from roli_fast.train.stage import Stage


def shares(schedule: Schedule, *, epochs: int, steps: int, warmup: float = 0) -> list[float]:
    stage = Stage(epochs=epochs, warmup_epochs=warmup, schedule=schedule)
    return [stage.lr_factor(update, steps=steps) for update in range(epochs * steps)]


HALF = math.sqrt(0.5)
EPOCH = Step(each="epoch")


@pytest.mark.parametrize(
    ("schedule", "epochs", "steps", "warmup", "expected"),
    [
        (Cosine(), 4, 2, 2, [0.25, 0.5, 0.75, 1, 1, (1 + HALF) / 2, 0.5, (1 - HALF) / 2]),
        # the release: one rate an epoch, the first 0
        (Cosine(each="epoch"), 4, 1, 2, [0, 0.5, 1, 0.5]),
        (Cosine(each="epoch"), 4, 2, 2, [0, 0, 0.5, 0.5, 1, 1, 0.5, 0.5]),
        # RAMP's fine-tuning: 3 epochs, so a tenth each epoch
        (Step(), 3, 2, 0, [1, 1, 0.1, 0.1, 0.01, 0.01]),
        (EPOCH, 3, 2, 0, [1, 1, 0.1, 0.1, 0.01, 0.01]),
        # RAMP's ImageNet fine-tuning: 1 epoch, a tenth after a third of its updates
        (Step(), 1, 6, 0, [1, 1, 0.1, 0.1, 0.01, 0.01]),
        # 7 updates: a third is 2.33, so the fourth (number 3) is the first behind it
        (Step(), 1, 7, 0, [1, 1, 1, 0.1, 0.1, 0.01, 0.01]),
        (EPOCH, 1, 7, 0, [1] * 7),
        # 4 epochs of 3 updates: thirds are at updates 4 and 8, the next epochs begin at 6 and 9
        (Step(), 4, 3, 0, [1] * 4 + [0.1] * 4 + [0.01] * 4),
        (EPOCH, 4, 3, 0, [1] * 6 + [0.1] * 3 + [0.01] * 3),
        # from scratch: a tenth after epoch 70 of 80
        (Step((70.0,)), 80, 39, 0, [1] * (70 * 39) + [0.1] * (10 * 39)),
        (Step((7 / 8,)), 80, 39, 0, [1] * (70 * 39) + [0.1] * (10 * 39)),
        # 10 updates: up over four of them, then down over six; the warm-up plays no part
        (Triangle(), 5, 2, 3, [0.25, 0.5, 0.75, 1, 6 / 6, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        (Triangle(0.5), 1, 4, 0, [0.5, 1, 1, 0.5]),
    ],
)
def test_by_hand(
    schedule: Schedule, epochs: int, steps: int, warmup: float, expected: list[float]
) -> None:
    found = shares(schedule, epochs=epochs, steps=steps, warmup=warmup)
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("steps", [1, 7, 391, 1173, 10009])
def test_a_third_is_met_whatever_it_rounds_to(steps: int) -> None:
    found = shares(Step(), epochs=3, steps=steps)
    assert [found.index(value) for value in (1.0, 0.1, 0.1**2)] == [0, steps, 2 * steps]


def test_the_published_triangle_is_highest_at_epoch_12_of_30() -> None:
    """Beside the piecewise linear interpolation of the release, whose last update is at zero."""
    found = shares(Triangle(), epochs=30, steps=10)
    for update, share in enumerate(found):
        t = (update + 1) / 10
        published = t / 12 if t <= 12 else (30 - t) / 18
        assert abs(share - published) <= 1 / 180 + 1e-12
    assert max(found) == found[119] == found[120] == 1.0 and found[-1] > 0


@pytest.mark.parametrize("name", SCHEDULES.names())
@pytest.mark.parametrize(("epochs", "steps"), [(1, 1), (1, 2), (3, 1), (2, 5)])
def test_every_update_moves_and_none_is_above_the_peak(name: str, epochs: int, steps: int) -> None:
    assert all(0 < share <= 1 for share in shares(SCHEDULES[name](), epochs=epochs, steps=steps))


def test_flags_and_yaml_name_a_schedule(tmp_path: Path) -> None:
    flags = ["--finetune.schedule", "step", "--finetune.schedule.milestones", "1/2,2.5"]
    experiment = small(*flags, "--probe.schedule=triangle", "--probe.schedule.peak=0.3")
    assert experiment.finetune.schedule == Step((0.5, 2.5))
    assert experiment.probe.schedule == Triangle(0.3)
    file = tmp_path / "c.yaml"
    file.write_text(SCHEMA.to_yaml(experiment))
    assert parse(["--config", str(file)]).experiment == experiment
    file.write_text("data: digits\nfinetune: {schedule: {name: step, milestones: [1/4]}}\n")
    assert parse(["--config", str(file)]).experiment.finetune.schedule == Step((0.25,))


STEP = "--probe.schedule=step"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([STEP, "--probe.schedule.milestones=0.5,0.5"], "`probe.schedule.milestones`.*ascending"),
        ([STEP, "--probe.schedule.factor=2"], "`probe.schedule.factor`.*got 2"),
        (
            [STEP, "--probe.schedule.milestones=70", "--probe.epochs=3"],
            r"`probe.schedule.milestones`.*stage \(3\), got 70.*0.5",
        ),
        (["--probe.schedule=triangle", "--probe.schedule.peak=1"], r"peak`: .*\(0, 1\), got 1"),
    ],
)
def test_wrong_flags_are_named(flags: list[str], words: str) -> None:
    with pytest.raises((ArgumentError, ConfigError), match=words):
        small(*flags)
