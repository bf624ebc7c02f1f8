"""The alignment of single steps, the alarm, and what a run does then."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small import assert_same_weights, records, run_small, small, stop_at
from tiny_models import Mixed, images
from torch.nn.functional import cosine_similarity, cross_entropy

from roli_fast.attacks import NFGSM, PGD, SORA
from roli_fast.data import Batch
from roli_fast.engine import Engine
from roli_fast.errors import CollapseError, InterruptedRunError
from roli_fast.threat import ThreatModel
from roli_fast.train import alignment
from roli_fast.train.alignment import Alignment, alignment_alarm, remembered, score_alarm
from roli_fast.train.objectives import TRADES, Adversarial, Objective, Step
from roli_fast.train.stage import Stage
from roli_fast.train.summary import table

RANLI = (
    "--methods=ranli",
    "--ranli.epochs=3",
    "--ranli.batch_size=32",
    "--ranli.optimizer.lr=2e-3",
)


def test_the_row_by_hand() -> None:
    """Cosines 0.6 and -1, and one sample without a gradient at its start."""
    start = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 0.0]])
    seen = Alignment()
    x_adv = seen.watched(torch.zeros(3, 2), start)
    (x_adv * torch.tensor([[1.0, 0.0], [-2.0, 0.0], [1.0, 1.0]])).sum().mul(0.5).backward()
    row = seen.row(torch.zeros((), dtype=torch.float64), 2.0)  # the halved loss is told
    torch.testing.assert_close(row, torch.tensor([0.6 - 1, 1 / 7 - 2, 2.0]).double())


def test_an_average_by_hand_that_no_outlier_moves_far() -> None:
    sora = SORA(alignment=0.9, memory=0.05)
    assert remembered(sora, torch.tensor([0.0, 1.0, 2.0])) == pytest.approx(0.95 * 0.9 + 0.05 * 0.5)
    assert remembered(sora, torch.tensor([0.0, 900.0, 2.0])) == pytest.approx(0.95 * 0.9 + 0.05)
    assert remembered(sora, torch.zeros(3)) == 0.9


@pytest.mark.parametrize("objective", [Adversarial(), TRADES()], ids=["adversarial", "trades"])
def test_the_second_gradient_is_that_of_the_training_loss(objective: Objective) -> None:
    model, x, y = Mixed().eval(), images(4, 3, 6, 6), torch.tensor([0, 3, 1, 2])
    seen, attack = Alignment(), NFGSM(eps=0.1)
    batch, draws = Batch(x, y, torch.arange(4)), torch.Generator().manual_seed(0)
    plain = Step(model, batch, attack, draws, Engine())
    expected = objective(plain)
    draws.manual_seed(0)
    terms = objective(plain._replace(alignment=seen))
    assert torch.equal(terms.loss, expected.loss)  # to look changes nothing
    terms.loss.backward()
    assert seen.x_adv is not None and seen.x_adv.grad is not None and seen.start_grad is not None
    if isinstance(objective, Adversarial):
        leaf = seen.x_adv.detach().requires_grad_(True)
        (grad,) = torch.autograd.grad(cross_entropy(model(leaf), y), leaf)
        torch.testing.assert_close(seen.x_adv.grad, grad)
    found = cosine_similarity(seen.start_grad.flatten(1), seen.x_adv.grad.flatten(1)).sum()
    assert seen.row(terms.loss, 4.0)[0] == pytest.approx(float(found), rel=1e-4)


def test_a_head_alone_is_looked_at_once_in_fifty_updates_unless_sora_asks() -> None:
    looks = [alignment.watches(NFGSM(), True, step) for step in range(100)]
    assert looks.count(True) == 2 and looks[0]
    assert alignment.watches(SORA(), True, 1) and alignment.watches(NFGSM(), False, 1)
    assert not alignment.watches(PGD(), False, 0) and not alignment.watches(None, False, 0)


def test_alarms_by_hand() -> None:
    assert "0.40" in alignment_alarm(0.4, 0.9) and not alignment_alarm(0.5, 0.9)
    assert not alignment_alarm(-0.01, 0.03)  # never was high: batch normalisation, say
    assert "20.0 %" in score_alarm(0.2, 0.5, 200) and not score_alarm(0.3, 0.5, 200)
    assert not score_alarm(0.05, 0.15, 20)  # two images of twenty are noise
    assert not score_alarm(0.1, -1.0, 200)


@pytest.mark.parametrize(
    ("validation", "train", "expected"),
    [
        # 10 epochs of 5 passes on 1000 images: a quarter of 50,000 are 595 looks of 21
        (1000, 1000, (5, 297)),
        (100, 1000, (2, 100)),
        (100, 8000, (1, 100)),
        (1000, 8000, (1, 476)),
    ],
)
def test_a_validation_of_single_steps_takes_a_fifth_at_most(
    validation: int, train: int, expected: tuple[int, int]
) -> None:
    splits: Any = type("Splits", (), dict(train=range(train), val=range(validation)))
    splits.num_classes = 10
    threat, look = ThreatModel(), [PGD(steps=10)]
    stage = Stage(epochs=10, attack=NFGSM())
    every, seen = stage.validation_plan(threat, look, splits)
    assert (every, seen) == expected
    whole = dataclasses.replace(stage, validation_share=1.0)
    assert whole.validation_plan(threat, look, splits) == (1, validation)
    assert Stage().validation_plan(threat, look, splits) == (1, validation)


def test_roli_by_one_step_is_roli_with_n_fgsm() -> None:
    fast, slow = (dict(small("--methods=roli_fast,roli").stages(m)) for m in ("roli_fast", "roli"))
    for name, stage in slow.items():
        attack = NFGSM(norm=None, eps=None, bounds=None)
        assert fast[name] == dataclasses.replace(stage, attack=attack)


def test_its_costs_stand_beside_those_of_roli(tmp_path: Path) -> None:
    flags = ("--methods=roli_fast,roli", "--probe.epochs=1", "--finetune.epochs=1")
    summary = run_small(tmp_path / "run", *flags, "--validation.steps=1")
    fast, slow = (summary["methods"][name]["stages"] for name in ("roli_fast", "roli"))
    # 72 images: a head's update is 1 pass, one of all weights 3; a step 2
    images = [stage["validation_images"] for stage in (*fast, *slow)]
    steps = [1 + 2, 3 + 2, 1 + 4, 3 + 4]
    looks = [72 * step + 3 * seen for step, seen in zip(steps, images, strict=True)]
    assert [stage["passes"] for stage in (*fast, *slow)] == looks
    assert fast[1]["alignment"] > 0.3 and slow[1]["alignment"] is None
    lines = table(summary).splitlines()
    assert "passes" in lines[0] and "seconds" in lines[0]
    assert any(line.startswith("roli_fast/finetune: validated on") for line in lines)


class Falls:
    """Stands for `alignment_alarm`: the alarm of one epoch."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *at: int) -> None:
        self.at, self.count = set(at), 0
        monkeypatch.setattr(alignment, "alignment_alarm", self)

    def __call__(self, *_: float) -> str:
        self.count += 1
        return "it fell" if self.count in self.at else ""


def test_after_an_alarm_it_goes_on_from_the_best_epoch_with_more_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the same where it is stopped in between. The second epoch is the one that alarms."""
    flags = (*RANLI, "--ranli.attack=rs-fgsm", "--ranli.select=last", "--ranli.validation_share=1")
    Falls(monkeypatch, 2)
    summary = run_small(tmp_path / "straight", *flags)
    (told,) = (text for text in summary["warnings"] if "it fell" in text)
    assert "epoch 1: it fell; back to the end of epoch 0, from there with 2 steps" in told
    rows = records(tmp_path / "straight")
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    assert ["train_alignment" in row for row in rows] == [True, False, False]
    Falls(monkeypatch, 2)
    with monkeypatch.context() as patch:
        stop_at(patch, 8)  # in the first epoch of two steps: of three updates an epoch
        with pytest.raises(InterruptedRunError):
            run_small(tmp_path / "run", *flags)
    run_small(tmp_path / "run", *flags)
    assert_same_weights(tmp_path / "straight", tmp_path / "run")
    assert rows == records(tmp_path / "run")


def test_a_stage_may_stop_with_its_best_epoch_if_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = (*RANLI, "--ranli.attack=rs-fgsm", "--on_collapse=stop", "--ranli.validation_share=1")
    Falls(monkeypatch, 2)
    run_small(tmp_path / "run", *flags)
    result = json.loads(next((tmp_path / "run").glob("**/result.json")).read_text())
    assert result["best_epoch"] == 0 and "the stage ends" in result["alarms"][0]
    Falls(monkeypatch, 1)
    with pytest.raises(CollapseError, match="it fell.*--on_collapse"):
        run_small(tmp_path / "first", *flags)
    Falls(monkeypatch, 1, 2, 3)
    summary = run_small(tmp_path / "ignoring", *flags, "--on_collapse=ignore")
    assert not [told for told in summary["warnings"] if "fell" in told]
