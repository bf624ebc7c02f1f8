"""A radius that rises: its values by hand, what follows it, and a run that is stopped in it."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import pytest
from small import assert_same_weights, records, run_small, small, stop_at

from roli_fast.attacks import ATTACKS, MSD, NFGSM, PGD
from roli_fast.errors import ArgumentError, ConfigError, InterruptedRunError
from roli_fast.threat import ThreatModel
from roli_fast.train import alignment
from roli_fast.train.checkpoint import load_resume
from roli_fast.train.checks import check
from roli_fast.train.context import tag
from roli_fast.train.eps_schedule import Auto, Constant, EpsSchedule, Ramp
from roli_fast.train.stage import Stage
from roli_fast.train.summary import table

TWO = ["--threat.other_norms=l2", "--threat.other_eps=0.7", "--ranli.attack=multi_apgd"]


def shares(schedule: EpsSchedule, epochs: int, accuracies: tuple[float, ...] = ()) -> list[float]:
    stage = Stage(epochs=epochs, eps_schedule=schedule)
    return [stage.eps_share(epoch, accuracies) for epoch in range(epochs)]


@pytest.mark.parametrize(
    ("schedule", "epochs", "expected"),
    [
        (Constant(), 2, [1, 1]),
        # as published: 12 epochs without an attack, epoch 13 is the first of 25 steps up
        (Ramp(), 50, [0] * 12 + [i / 25 for i in range(1, 25)] + [1] * 14),
        (Ramp(), 10, [0, 0, 0.12, 0.32, 0.52, 0.72, 0.92, 1, 1, 1]),
        (Ramp(0, 1), 4, [0.25, 0.5, 0.75, 1]),
        # the demo's eight clean epochs: a hard switch
        (Ramp(8 / 44, 8 / 44), 44, [0] * 8 + [1] * 36),
        # without a stall it begins where it can just be finished
        (Auto(rise=0.5), 4, [0, 0, 0.5, 1]),
    ],
)
def test_by_hand(schedule: EpsSchedule, epochs: int, expected: list[float]) -> None:
    assert shares(schedule, epochs) == pytest.approx(expected)


def test_auto_begins_when_two_points_in_five_epochs_fail_to_come() -> None:
    rises = [0.5, 0.6, 0.61, 0.615, 0.62, 0.619, 0.61]  # 0.6 is never beaten by 0.02
    auto = Auto()
    assert [auto.stalls(rises[:n]) for n in range(8)] == [False] * 7 + [True]
    assert not auto.stalls([0.02 * i + 0.001 * i * i for i in range(20)])  # slow is no stall
    # seven epochs have been: the rise of a half of 20 takes epochs 8 to 17
    found = shares(auto, 20, tuple(rises))
    assert found == pytest.approx([0] * 7 + [i / 10 for i in range(1, 11)] + [1] * 3)


@pytest.mark.parametrize("name", ATTACKS.names())
def test_every_attack_follows_a_share_of_its_radius(name: str) -> None:
    attack: Any = ATTACKS[name]().under(ThreatModel("linf", 0.1, (0.0, 1.0), ("l2", "l1"), (2, 8)))
    half = attack.at(0.5)
    several = isinstance(attack.eps, tuple)
    assert half.eps == ((0.05, 1.0, 4.0) if several else 0.05)
    assert dataclasses.replace(half, eps=attack.eps) == attack and attack.at(1.0) is attack


def test_step_sizes_follow() -> None:
    assert PGD(eps=0.1, step_size=0.02).at(0.25) == PGD(eps=0.025, step_size=0.005)
    sizes = (0.1, 0.2)  # of MSD in multiples of eps
    msd = MSD(("linf", "l2"), (0.1, 2.0), step_sizes=sizes)
    assert msd.at(0.5) == MSD(("linf", "l2"), (0.05, 1.0), step_sizes=sizes)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["ramp", "start=1.2"], r"`probe.eps_schedule.start`: .*\[0, 1\], got 1.2"),
        (["ramp", "start=-1/50"], r"`probe.eps_schedule.start`: .*\[0, 1\], got -0.02"),
        (["ramp", "start=1/2", "end=1/4"], r"`probe.eps_schedule.end`: .*\[start, 1\].*got 0.25"),
        (["ramp", "end=37"], r"end`: .*got 37.*parts of the stage"),
        (["auto", "patience=0"], r"`probe.eps_schedule.patience`: .*>= 1"),
        (["auto", "rise=2"], r"`probe.eps_schedule.rise`"),
        (["stairs"], r"`probe.eps_schedule.name`.*auto, constant, ramp.*'stairs'"),
    ],
)
def test_wrong_flags_are_named(flags: list[str], words: str) -> None:
    name, *fields = flags
    more = [f"--probe.eps_schedule.{field}" for field in fields]
    with pytest.raises((ArgumentError, ConfigError), match=words):
        small(f"--probe.eps_schedule={name}", *more)


def test_a_hard_switch_is_warned_of_where_a_backbone_is_fine_tuned(
    caplog: pytest.LogCaptureFixture,
) -> None:
    hard = "={name: ramp, start: 1/3, end: 1/3}"
    source = ["--source=digits", "--source.classes=1,2", "--source.max_per_class=20"]
    with caplog.at_level(logging.WARNING):
        check(small(*source, f"--pretrain.eps_schedule{hard}", "--pretrain.epochs=3"))
        assert "eps_schedule" not in caplog.text
        check(small(f"--finetune.eps_schedule{hard}"))
    assert "finetune.eps_schedule goes from clean images to the full radius" in caplog.text


def test_the_methods_are_ranli_with_a_ramp() -> None:
    experiment = small("--methods=ramp,ramp_fast,ranli,roli")
    found = {m: experiment.stages(m) for m in experiment.methods}
    ((name, ranli),) = found["ranli"]
    attack = NFGSM(norm=None, eps=None, bounds=None)
    assert found["ramp"] == [(name, dataclasses.replace(ranli, eps_schedule=Ramp()))]
    fast = dataclasses.replace(ranli, eps_schedule=Ramp(), attack=attack)
    assert found["ramp_fast"] == [(name, fast)]
    assert ranli.epochs == sum(stage.epochs for _, stage in found["roli"])
    own = small("--methods=ramp", "--finetune.eps_schedule=auto").stages("ramp")[0][1]
    assert own.eps_schedule == Auto()


def test_ramp_beside_roli_in_two_norms(tmp_path: Path) -> None:
    """The first of five epochs is clean: no pass is counted for an attack in it."""
    flags = ["--methods=ramp,roli", "--finetune.epochs=4", "--probe.epochs=1", *TWO[:2]]
    flags += ["--finetune.attack=multi_apgd", "--finetune.attack.steps=1"]
    flags += ["--probe.attack=multi_apgd", "--probe.attack.steps=1", "--validation.steps=1"]
    summary = run_small(tmp_path / "run", *flags)
    (ramp,), (_probe, roli) = (summary["methods"][m]["stages"] for m in ("ramp", "roli"))
    # 72 images: an update is 3 passes, one step in two norms 3 forwards and 1 backward; what each
    # epoch's validation takes is left out
    by_hand = 4 * 72 * (5 * 3 + 4 * 4) - 5 * 72 * (4 * 3 + 4 * 4)
    assert 4 * ramp["passes"] - 5 * roli["passes"] == by_hand
    radii = [row["train_eps"] for row in records(tmp_path / "run") if row["method"] == "ramp"]
    assert radii == pytest.approx([0.04 * share for share in shares(Ramp(), 5)])
    assert "train_eps" not in [*records(tmp_path / "run")][-1]
    assert tag("train_eps", attacked=True) == "train/eps" and "passes" in table(summary)


KINDS = {
    "auto": ["--ranli.eps_schedule={name: auto, patience: 1, tolerance: 1, rise: 1/2}"],
    "ramp, two norms": ["--ranli.eps_schedule=ramp", "--ranli.attack.steps=2", *TWO],
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_is_stopped_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Three updates an epoch, stopped at the 5th and the 11th: in the second epoch auto still
    waits, in the fourth it rises."""
    flags = ["--methods=ranli", "--ranli.epochs=6", "--ranli.batch_size=24", *KINDS[kind]]
    flags += ["--ranli.validate_every=4", "--ranli.optimizer.lr=2e-3"]
    run_small(tmp_path / "straight", *flags)
    for after, waited in ((5, 1), (6, 2)):
        with monkeypatch.context() as patch:
            stop_at(patch, after)
            with pytest.raises(InterruptedRunError):
                run_small(tmp_path / "run", *flags)
        (file,) = (tmp_path / "run").glob("**/resume.pt")
        accuracies = load_resume(file).progress.clean_accuracies
        assert len(accuracies) == (waited if kind == "auto" else 0)
    run_small(tmp_path / "run", *flags)
    assert_same_weights(tmp_path / "straight", tmp_path / "run")
    assert records(tmp_path / "straight") == records(tmp_path / "run")
    rows = records(tmp_path / "run")
    expected = [0, 0, 1 / 3, 2 / 3, 1, 1] if kind == "auto" else shares(Ramp(), 6)
    assert [row["train_eps"] for row in rows] == pytest.approx([0.04 * share for share in expected])
    # clean accuracy alone where auto waits and no validation is due
    looked = ["validation_clean_accuracy" in row for row in rows]
    assert looked == [kind == "auto", kind == "auto", False, True, False, True]
    whole = ["validation_robust_accuracy" in row for row in rows]
    assert whole == [False, False, False, True, False, True]


def test_a_rising_radius_is_no_alarm_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An epoch's alignment is held against the last one's and those of its own radius."""
    told = list[tuple[float, float]]()
    monkeypatch.setattr(alignment, "alignment_alarm", lambda *given: told.append(given) or "")
    flags = ["--methods=ranli", "--ranli.attack=rs-fgsm", "--ranli.epochs=5"]
    run_small(tmp_path / "run", *flags, "--ranli.eps_schedule={name: ramp, start: 0, end: 3/5}")
    found = [cosine for cosine, _ in told]
    highest = [max(found[i] for i in alike) for alike in ([0], [0, 1], [1, 2], [2, 3], [2, 3, 4])]
    assert [most for _, most in told] == highest
