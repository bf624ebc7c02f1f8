"""What the loop gives an objective: its draws, its counts, and what it is settled on."""

import json
import logging
from pathlib import Path
from typing import Any

import counted
import pytest
from counted import SETTLED, TOLD, Counting
from epochs_by_hand import start
from processes import together
from small import assert_same_weights, run_small, small, stop_at

from roli_fast.attacks import PGD
from roli_fast.data import batches
from roli_fast.errors import ArgumentError, ConfigError, InterruptedRunError
from roli_fast.evaluate import evaluate
from roli_fast.seeds import derive_seed
from roli_fast.train import loop
from roli_fast.train.objectives import OBJECTIVES
from roli_fast.train.stage import measured

ONE = ["--methods=ranli", "--ranli.batch_size=30", "--ranli.epochs=2", "--ranli.attack.steps=1"]
"""72 images: updates of 30, 30 and 12."""

COUNTING = [*ONE, "--ranli.objective=counting"]
NORMS = ["--threat.other_norms=l1,l2", "--threat.other_eps=4,0.01"]
SETTLE = [*COUNTING, *NORMS, "--ranli.objective.worst="]


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    TOLD.clear()
    SETTLED.clear()
    monkeypatch.setitem(OBJECTIVES._items, "counting", Counting)


@pytest.mark.parametrize("parts", [1, 4])
def test_each_update_has_a_draw_and_sees_all_counts(tmp_path: Path, parts: int) -> None:
    run_small(tmp_path / "run", *COUNTING, f"--ranli.accumulate={parts}")
    assert len(TOLD) == 6 * parts
    told = list(dict.fromkeys(TOLD))  # the parts of an update are told the same
    assert [counts[0] for counts, _draw in told] == [0, 30, 60, 72, 102, 132]
    assert told[3][0][1] == small(*ONE).data.load().train.labels.sum()
    draws = [draw for _counts, draw in told]
    assert len(set(draws)) == 6 and min(draws) >= 0 and max(draws) < 1


def test_two_processes_count_and_draw_as_one(tmp_path: Path) -> None:
    """Updates of 35, 35 and 2 images."""
    flags = ["--ranli.objective=counting", "--ranli.accumulate=2"]
    members = together(2, counted.counted, tmp_path / "run", *flags)
    (status, told), other = members[0].value, members[1].value
    assert (status, told) == (0, other[1]), members
    assert list(dict.fromkeys(row[0] for row, _draw in told)) == [0, 35, 70, 72, 107, 142]


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


def test_a_resume_is_settled_on_what_was_measured_first_and_goes_on_counting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="roli_fast"):
        run_small(tmp_path / "straight", *SETTLE)
    expected, straight = by_hand(), list(TOLD)
    path = tmp_path / "straight/seed-0/ranli/stage-1-ranli/result.json"
    assert json.loads(path.read_text())["start_accuracies"] == expected
    (line,) = [m for m in caplog.messages if "starts at robust accuracy" in m]
    assert f"linf {100 * expected['linf']:.1f} %" in line and "worst=" in line
    TOLD.clear()
    with monkeypatch.context() as stopped, pytest.raises(InterruptedRunError):
        stop_at(stopped, 4)
        run_small(tmp_path / "run", *SETTLE)
    measurings: list[Any] = []
    original = loop.StageLoop._evaluated

    def watched(self: loop.StageLoop, attacks: Any, split: Any) -> Any:
        measurings.append(attacks)
        return original(self, attacks, split)

    monkeypatch.setattr(loop.StageLoop, "_evaluated", watched)
    run_small(tmp_path / "run", *SETTLE)
    assert [expected] * 3 == SETTLED and list(expected) == ["linf", "l1", "l2"]
    assert len(measurings) == 1  # the validation of the second epoch
    assert straight == TOLD
    assert_same_weights(tmp_path / "straight", tmp_path / "run")


def test_an_objective_refuses_its_attack_at_once() -> None:
    refusing = ["--ranli.objective=counting", "--ranli.objective.refuses=true"]
    with pytest.raises(ArgumentError, match="`ranli.attack`: expected no attack, got PGD"):
        small(*ONE, *refusing)
    small(*ONE, "--methods=probe", *refusing)  # which does not run it


def test_norms_that_cannot_be_measured_are_refused() -> None:
    """With balls of its own the accuracy is the same in every norm, and the pair by order; one that
    the attack lacks could be chosen, which fails after the measuring."""
    several = ["--validation=msd", "--validation.norms=linf,l2", "--validation.eps=0.04,0.7"]
    for flags in (["--validation.norm=linf"], several):
        with pytest.raises((ArgumentError, ConfigError), match="`validation"):
            small(*SETTLE, *flags)
        small(*ONE, *NORMS, *flags)
    attack = [*ONE, "--ranli.attack=multi_apgd", "--ranli.attack.norms=linf,l1"]
    experiment = small(*attack, *NORMS, "--ranli.objective=ramp")
    ranli, threat = experiment.stages("ranli")[0][1], experiment.threat
    assert ranli.attack is not None
    own = measured(ranli.attack.under(threat), threat)
    assert [alone.norm for alone in own] == ["linf", "l1"]
    with pytest.raises(ConfigError, match="`validation`: expected an attack that follows"):
        small(*attack, "--ranli.attack.eps=0.1,2", "--ranli.objective=ramp")
