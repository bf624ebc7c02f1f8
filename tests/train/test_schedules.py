"""Learning-rate schedules, worked out by hand, and how a configuration names them."""

import json
import math
from pathlib import Path

import pytest
from small import run_small, small

from roli_fast.errors import ArgumentError, ConfigError
from roli_fast.train.cli import parse
from roli_fast.train.experiment import SCHEMA
from roli_fast.train.optim import SCHEDULES, Cosine, Schedule, Step, Triangle
from roli_fast.train.stage import Stage


def shares(schedule: Schedule, *, epochs: int, steps: int, warmup: float = 0) -> list[float]:
    stage = Stage(epochs=epochs, warmup_epochs=warmup, schedule=schedule)
    return [stage.lr_factor(update, steps=steps) for update in range(epochs * steps)]


def test_the_cosine_by_hand() -> None:
    half = math.sqrt(0.5)
    expected = [0.25, 0.5, 0.75, 1.0, 1.0, (1 + half) / 2, 0.5, (1 - half) / 2]
    assert shares(Cosine(), epochs=4, steps=2, warmup=2) == pytest.approx(expected)


def test_a_tenth_each_third() -> None:
    """RAMP's fine-tuning: 3 epochs, so a tenth each epoch."""
    expected = [1, 1, 0.1, 0.1, 0.01, 0.01]
    assert shares(Step(), epochs=3, steps=2) == pytest.approx(expected)
    assert shares(Step(each="epoch"), epochs=3, steps=2) == pytest.approx(expected)


def test_thirds_of_one_epoch() -> None:
    """RAMP's ImageNet fine-tuning: 1 epoch, a tenth after a third of its updates."""
    assert shares(Step(), epochs=1, steps=6) == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    # 7 updates: a third is 2.33, so the fourth (number 3) is the first behind it; 4.67 likewise
    by_update = shares(Step(), epochs=1, steps=7)
    assert by_update == pytest.approx([1, 1, 1, 0.1, 0.1, 0.01, 0.01])
    assert shares(Step(each="epoch"), epochs=1, steps=7) == [1] * 7


def test_by_epochs_where_thirds_fall_inside_them() -> None:
    """4 epochs of 3 updates: thirds are at updates 4 and 8, the next epochs begin at 6 and 9."""
    by_update = [1] * 4 + [0.1] * 4 + [0.01] * 4
    assert shares(Step(), epochs=4, steps=3) == pytest.approx(by_update)
    by_epoch = [1] * 6 + [0.1] * 3 + [0.01] * 3
    assert shares(Step(each="epoch"), epochs=4, steps=3) == pytest.approx(by_epoch)


@pytest.mark.parametrize("milestone", [70.0, 7 / 8])
def test_from_scratch_the_rate_falls_after_epoch_70(milestone: float) -> None:
    found = shares(Step((milestone,)), epochs=80, steps=391)
    assert found == pytest.approx([1.0] * (70 * 391) + [0.1] * (10 * 391))


@pytest.mark.parametrize("steps", [1, 7, 391, 1173, 10009])
def test_a_third_is_met_whatever_it_rounds_to(steps: int) -> None:
    found = shares(Step(), epochs=3, steps=steps)
    assert [found.index(value) for value in (1.0, 0.1, 0.1**2)] == [0, steps, 2 * steps]


def test_the_triangle_by_hand() -> None:
    """10 updates: up over four of them, then down over six."""
    down = [6 / 6, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]
    expected = [0.25, 0.5, 0.75, 1, *down]
    assert shares(Triangle(), epochs=5, steps=2) == pytest.approx(expected)
    assert shares(Triangle(), epochs=5, steps=2, warmup=3) == pytest.approx(expected)
    assert shares(Triangle(0.5), epochs=1, steps=4) == pytest.approx([0.5, 1, 1, 0.5])


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


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"milestones": (0.0,)}, r"`milestones`.*\(0.0,\).*shares"),
        ({"milestones": (0.5, 0.5)}, "`milestones`: expected ascending"),
        ({"factor": 10.0}, r"`factor`: expected a number in \(0, 1\), got 10"),
    ],
)
def test_wrong_steps_are_named(arguments: dict, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        Step(**arguments)


def test_a_milestone_that_is_never_reached_is_named() -> None:
    with pytest.raises(ArgumentError, match=r"`schedule.milestones`.*stage \(3\), got 70.*0.5"):
        Stage(epochs=3, schedule=Step((70.0,)))
    with pytest.raises(ArgumentError, match=r"`peak`: .*\(0, 1\), got 1"):
        Triangle(1.0)


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


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--finetune.schedule=stairs"], r"`finetune.schedule.name`.*cosine, step, tri.*'stairs'"),
        (["--finetune.schedule=step", "--finetune.schedule.peak=1"], r"`finetune.*peak`.*Known"),
        (["--finetune.schedule=step", "--finetune.schedule.milestones=x"], "milestones.*a number"),
        (["--probe.schedule=step", "--probe.schedule.factor=2"], "`probe.schedule.factor`.*got 2"),
        (
            ["--probe.schedule=step", "--probe.schedule.milestones=70", "--probe.epochs=3"],
            r"`probe.schedule.milestones`.*stage \(3\), got 70",
        ),
    ],
)
def test_wrong_flags_are_named(flags: list[str], words: str) -> None:
    with pytest.raises((ArgumentError, ConfigError), match=words):
        small(*flags)


def test_a_run_follows_its_schedule(tmp_path: Path) -> None:
    flags = ["--methods=ranli", "--ranli.epochs=3", "--ranli.schedule=step"]
    run_small(tmp_path / "run", *flags, "--ranli.optimizer.lr=1e-3", "--ranli.warmup_epochs=0")
    rows = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["lr"] for row in rows] == pytest.approx([1e-3, 1e-4, 1e-5])
