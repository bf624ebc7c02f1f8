"""What the loop gives an objective: its draws, its counts, and what it is settled on."""

import json
import logging
from pathlib import Path
from typing import Any

import counted
import pytest
import torch
from counted import KINDS, SETTLED, TOLD
from epochs_by_hand import start
from processes import together
from small import assert_same_weights, run_small, small, stop_at

from roli_fast.attacks import PGD
from roli_fast.data import batches
from roli_fast.errors import ArgumentError, ConfigError, InterruptedRunError
from roli_fast.evaluate import evaluate
from roli_fast.seeds import derive_seed, derived_generator
from roli_fast.train import loop
from roli_fast.train.checkpoint import load_resume
from roli_fast.train.objectives import OBJECTIVES

ONE = ["--methods=ranli", "--ranli.batch_size=30", "--ranli.epochs=2", "--ranli.attack.steps=1"]
"""72 images: updates of 30, 30 and 12."""

DRAWN = [
    float(
        torch.rand((), generator=derived_generator(0, "ranli", "objective", i), dtype=torch.float64)
    )
    for i in range(6)
]


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    TOLD.clear()
    SETTLED.clear()
    for name, kind in KINDS.items():
        monkeypatch.setitem(OBJECTIVES._items, name, kind)


def resume(folder: Path) -> Any:
    return load_resume(folder / "seed-0/ranli/stage-1-ranli/resume.safetensors")


@pytest.mark.parametrize("parts", [1, 4])
def test_an_objective_draws_once_an_update_and_sees_all_counts(tmp_path: Path, parts: int) -> None:
    run_small(tmp_path / "run", *ONE, "--ranli.objective=counting", f"--ranli.accumulate={parts}")
    counts = [row[0] for row, _drawn in TOLD]
    assert counts == [0, 30, 60, 72, 102, 132]
    labels = small(*ONE).data.load().train.labels
    assert TOLD[3][0][1] == labels.sum()
    assert [drawn for _row, drawn in TOLD] == DRAWN


@pytest.mark.parametrize("after", [3])
def test_counts_go_on_after_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    flags = [*ONE, "--ranli.objective=counting"]
    run_small(tmp_path / "straight", *flags)
    straight = list(TOLD)
    TOLD.clear()
    stop_at(monkeypatch, after)
    with pytest.raises(InterruptedRunError):
        run_small(tmp_path / "run", *flags)
    monkeypatch.undo()
    monkeypatch.setitem(OBJECTIVES._items, "counting", KINDS["counting"])
    assert resume(tmp_path / "run").progress.counts[0] == [30, 60, 72, 102, 132, 144][after - 1]
    run_small(tmp_path / "run", *flags)
    assert straight == TOLD
    assert_same_weights(tmp_path / "straight", tmp_path / "run")


def test_two_processes_count_and_draw_as_one(tmp_path: Path) -> None:
    """Updates of 35, 35 and 2 images; stopped after the fourth, and gone on with."""
    flags = ["--ranli.objective=counting", "--ranli.accumulate=2"]
    one, two = tmp_path / "one/run", tmp_path / "two/run"
    for folder in (one, two):
        folder.parent.mkdir()
    together(1, counted.counted, one, *flags)
    members = together(2, counted.counted_and_struck, 1, 4, two, *flags)
    assert [m.process.exitcode or m.value for m in members] == [143, 143], members
    members = together(2, counted.counted, two)
    assert [m.process.exitcode or m.value for m in members] == [0, 0], members
    expected = json.loads((one.parent / "told-0.json").read_text())
    assert [row[0] for row, _drawn in expected] == [0, 35, 70, 72, 107, 142]
    for rank in (0, 1):
        assert json.loads((two.parent / f"told-{rank}.json").read_text()) == expected


NORMS = ["--threat.other_norms=l1,l2", "--threat.other_eps=4,0.01"]
SETTLE = [*ONE, *NORMS, "--ranli.objective=settling"]


def by_hand() -> dict[str, float]:
    """Robust accuracy of the first model on the validation split, under each norm alone."""
    experiment = small(*SETTLE)
    model, split = start(experiment), experiment.data.load().val
    accuracies: dict[str, float] = {}
    for norm, eps in (("linf", 0.04), ("l1", 4.0), ("l2", 0.01)):
        order = batches(split.plain(), batch_size=30, seed=0, epoch=0, shuffle=False)
        attack = PGD(norm=norm, eps=eps, step_size=None, steps=2)
        found = evaluate(model, order, [attack], seed=derive_seed(0, "validation"))
        (accuracies[norm],) = found.robust_accuracy.values()
    return accuracies


def test_accuracies_are_measured_before_the_first_update(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="roli_fast"):
        run_small(tmp_path / "run", *SETTLE)
    expected = by_hand()
    assert SETTLED == [expected] and list(SETTLED[0]) == ["linf", "l1", "l2"]
    result = json.loads((tmp_path / "run/seed-0/ranli/stage-1-ranli/result.json").read_text())
    assert result["start_accuracies"] == expected
    (line,) = [m for m in caplog.messages if "starts at robust accuracy" in m]
    assert f"linf {100 * expected['linf']:.1f} %" in line and "worst=" in line


def test_a_resume_is_settled_on_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_small(tmp_path / "straight", *SETTLE)
    stop_at(monkeypatch, 4)
    with pytest.raises(InterruptedRunError):
        run_small(tmp_path / "run", *SETTLE)
    monkeypatch.undo()
    monkeypatch.setitem(OBJECTIVES._items, "settling", KINDS["settling"])
    measured: list[Any] = []
    original = loop.StageLoop._evaluated

    def watched(self: loop.StageLoop, attacks: Any) -> Any:
        measured.append(attacks)
        return original(self, attacks)

    monkeypatch.setattr(loop.StageLoop, "_evaluated", watched)
    run_small(tmp_path / "run", *SETTLE)
    assert len(SETTLED) == 3 and SETTLED[0] == SETTLED[1] == SETTLED[2]
    assert len(measured) == 1  # the validation of the second epoch
    assert_same_weights(tmp_path / "straight", tmp_path / "run")


def test_an_objective_refuses_its_attack_at_once() -> None:
    with pytest.raises(ArgumentError, match="`ranli.attack`: expected no attack, got PGD"):
        small(*ONE, "--ranli.objective=refusing")
    small(*ONE, "--methods=probe", "--ranli.objective=refusing")  # which does not run it
    with pytest.raises(ArgumentError, match="`pretrain.attack`: expected no attack, got PGD"):
        small(*ONE, "--source=digits", "--pretrain.objective=refusing")


@pytest.mark.parametrize(
    "flags",
    [
        ["--validation.norm=linf"],
        ["--validation=msd", "--validation.norms=linf,l2", "--validation.eps=0.04,0.7"],
    ],
)
def test_a_validation_that_cannot_measure_each_norm_is_refused(flags: list[str]) -> None:
    """With balls of its own the accuracy is the same in every norm, and the pair by order."""
    with pytest.raises((ArgumentError, ConfigError), match="`validation"):
        small(*SETTLE, *flags)
    small(*ONE, *NORMS, *flags)


def test_only_norms_that_the_attack_searches_are_measured(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Else one that it lacks could be chosen, which fails after the measuring, or a pretraining."""
    attack = ["--ranli.attack=multi_apgd", "--ranli.attack.steps=1"]
    flags = [*ONE, *NORMS, *attack, "--ranli.objective=ramp"]
    with caplog.at_level(logging.INFO, logger="roli_fast"):
        run_small(tmp_path / "run", *flags, "--ranli.attack.norms=linf,l1", "--ranli.epochs=1")
    (line,) = [m for m in caplog.messages if "starts at robust accuracy" in m]
    assert "linf" in line and "l1" in line and "l2" not in line
    alone = [*ONE, *attack, "--ranli.attack.norms=linf,l1", "--ranli.attack.eps=0.1,2"]
    with pytest.raises(ConfigError, match="`validation`: expected an attack that follows"):
        small(*alone, "--ranli.objective=ramp")
