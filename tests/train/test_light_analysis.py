"""The analysis that a run ends with: how much it looks at, what it writes, a stop, a failure."""

import json
import logging
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from analysed_run import analysed, analysis_of, run_analysed

from roli_fast import models
from roli_fast.analysis import Gathered
from roli_fast.analysis.examples import worth_showing
from roli_fast.analysis.light import Look
from roli_fast.data import Splits
from roli_fast.errors import InterruptedRunError
from roli_fast.train import pipeline, run
from roli_fast.train.analysis import ATTACKED, MethodAnalysis, first_images, plan
from roli_fast.train.summary import analysis_table

BOTH = {"clean", "adversarial"}
METHODS = "--methods=roli,ranli"


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RoLI and RanLI, analysed."""
    folder = tmp_path_factory.mktemp("analysed") / "run"
    run_analysed(folder, METHODS)
    return folder


@pytest.fixture
def trained(run_dir: Path, tmp_path: Path) -> Path:
    """The same run before its analysis."""
    folder = tmp_path / "run"
    shutil.copytree(run_dir, folder)
    for name in ("analysis.json", "examples.npz"):
        for path in folder.rglob(name):
            path.unlink()
    return folder


def test_it_has_what_is_promised(run_dir: Path) -> None:
    tree = analysis_of(run_dir)
    assert tree["attack"] == {"label": "pgd-2", "norm": "linf", "eps": 0.04}
    assert tree["images"] == {"train": 70, "validation": 70, "test": 70}
    assert [(s["name"], s["lr"], s["epochs"]) for s in tree["stages"]] == [
        ("probe", 0.1, 1),
        ("finetune", 2e-3, 2),
    ]
    for stage in tree["stages"]:
        for point in (stage["start"], stage["end"]):
            for name in ("residual", "separation", "pairwise_cosine"):
                assert set(point[name]) == BOTH
        assert set(stage["change"]) == BOTH
    assert set(tree["calibration"]) == BOTH
    radii = [p["eps"] for p in tree["curve"]["points"]]
    assert radii == pytest.approx([0, 0.01, 0.02, 0.04, 0.06, 0.08])
    lines = analysis_table(run_dir, ["roli", "ranli", "absent"]).splitlines()
    start = tree["stages"][0]["start"]["head"]["norm"]
    assert lines[2].startswith("roli ") and f"{start:.3g} > " in lines[2]
    assert lines[3].startswith("ranli ") and not any("absent" in line for line in lines)


def test_a_probe_moves_no_feature_and_hands_over_its_head(run_dir: Path) -> None:
    probe, finetune = analysis_of(run_dir)["stages"]
    assert probe["change"]["clean"]["absolute"] == 0
    assert probe["change"]["adversarial"]["absolute"] == 0
    assert probe["end"] == finetune["start"]
    assert finetune["change"]["clean"]["absolute"] > 0


def test_it_agrees_with_the_runs_own_test(run_dir: Path) -> None:
    """The same draws: what is right when clean and stays right under the test's attack does so
    here. The test does not attack what is wrong to begin with, which may turn right by chance."""
    test = json.loads((run_dir / "seed-0/roli/test.json").read_text())
    splits = analysed().data.load()
    place = {name: i for i, name in enumerate(splits.test.ids.tolist())}
    chosen = [place[name] for name in first_images(splits.test, 70).ids.tolist()]
    clean = sum(test["clean_flags"][i] == "1" for i in chosen)
    robust = sum(test["robust_flags"]["pgd-2"][i] == "1" for i in chosen)
    found = analysis_of(run_dir)["calibration"]
    assert found["clean"]["before"]["accuracy"] == clean / 70
    right = round(found["adversarial"]["before"]["accuracy"] * 70)
    assert robust <= right <= robust + 70 - clean


def test_the_examples(run_dir: Path) -> None:
    path = run_dir / "seed-0/roli/examples.npz"
    assert analysis_of(run_dir)["examples"] == path.name
    with np.load(path, allow_pickle=False) as file:
        found = dict(file)
    for name in ("clean", "adversarial"):
        assert found[name].shape == (8, 16, 16, 3)
        assert found[name].dtype == np.uint8
        assert found[f"{name}_prediction"].shape == (8,)
        assert (found[f"{name}_confidence"] > 1 / 3 - 1e-6).all()
    assert found["delta"].dtype == np.float16
    assert 0 < np.abs(found["delta"]).max() <= 0.0401
    rounded = found["adversarial"].astype(int) - found["clean"].astype(int)
    assert np.abs(rounded).max() <= 0.04 * 255
    model = models.load(run_dir / "seed-0/roli/stage-2-finetune/best.safetensors").eval()
    pixels = torch.from_numpy(found["adversarial"]).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        confidence, prediction = model(pixels).softmax(1).max(1)
    assert found["adversarial_prediction"].tolist() == prediction.tolist()
    assert np.allclose(found["adversarial_confidence"], confidence.numpy(), atol=1e-5)
    test = analysed().data.load().test
    places = [[test.name(i) for i in range(len(test))].index(name) for name in found["name"]]
    assert found["label"].tolist() == test.labels[places].tolist()
    right = found["clean_prediction"] == found["label"]
    fooled = found["unrounded_prediction"] != found["label"]
    assert right.all() and 1 <= fooled.sum() <= 6 and fooled[: fooled.sum()].all()


def test_examples_are_right_before_the_attack_and_most_are_fooled() -> None:
    def look(flags: str) -> Gathered:
        """Of labels 0: an image is right where there is a 1."""
        right = torch.tensor([flag == "1" for flag in flags])
        logits = torch.stack([right.float(), 1 - right.float()], 1)
        ids = torch.arange(len(flags))
        return Gathered(logits, logits, torch.zeros_like(ids), ids)

    many = worth_showing(Look(look("0" + "1" * 12), look("0" + "0" * 9 + "111")))
    assert many == [1, 2, 3, 4, 5, 6, 10, 11]
    few = worth_showing(Look(look("0001"), look("0000")))
    assert few == [3, 0, 1, 2]
    assert worth_showing(Look(look("1" * 9), look("1" * 9))) == list(range(8))


def without_time(tree: dict[str, Any]) -> dict[str, Any]:
    return {name: part for name, part in tree.items() if name != "seconds"}


def test_a_stop_in_the_middle(
    run_dir: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a resume ends with is that of an uninterrupted one."""
    calls, original = [], MethodAnalysis.watch

    def stopping(self: MethodAnalysis) -> None:
        calls.append(self)
        if len(calls) == 25:
            self.context.interrupt._note(signal.SIGTERM, None)
        original(self)

    monkeypatch.setattr(MethodAnalysis, "watch", stopping)
    with pytest.raises(InterruptedRunError, match="SIGTERM"):
        run_analysed(trained, METHODS)
    assert not list(trained.rglob("analysis.json"))
    run_analysed(trained, METHODS)
    assert without_time(analysis_of(trained)) == without_time(analysis_of(run_dir))


def test_a_failed_analysis_loses_nothing_of_the_run(
    trained: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """But where a signal ended its decoding workers, which is a stop of the run."""

    def broken(*_: object) -> None:
        raise RuntimeError("no such thing")

    def stopped(*_: object) -> None:
        signal.raise_signal(signal.SIGTERM)
        raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Terminated.")

    monkeypatch.setattr(MethodAnalysis, "_calibration", broken)
    monkeypatch.setattr(pipeline.report, "write", broken)
    with caplog.at_level(logging.WARNING):
        summary = run_analysed(trained, METHODS, "--report=true")
    assert summary["methods"]["roli"]["test"]["images"] > 0
    assert "RuntimeError: no such thing" in caplog.text
    assert f"python -m roli_fast.analyze {trained / 'seed-0' / 'roli'}" in caplog.text
    assert f"python -m roli_fast.report {trained}" in caplog.text
    assert not list(trained.rglob("analysis.json"))
    (trained / "summary.json").unlink()
    monkeypatch.setattr(MethodAnalysis, "_calibration", stopped)
    with pytest.raises(InterruptedRunError, match="SIGTERM"):
        run_analysed(trained, METHODS)
    assert not (trained / "summary.json").exists()


def test_no_test_image_is_looked_at_before_its_time(run_dir: Path, trained: Path) -> None:
    """A sweep's cells are analysed on validation; what is chosen adds the rest."""
    run_analysed(trained, METHODS, test=False)
    tree = analysis_of(trained)
    assert tree["images"]["test"] == 0
    assert not set(tree) & {"calibration", "curve", "examples"}
    assert not list(trained.rglob("examples.npz"))
    run_analysed(trained, METHODS)
    whole, straight = analysis_of(trained), analysis_of(run_dir)
    assert whole["calibration"] == straight["calibration"]
    assert whole["stages"] == straight["stages"]


@pytest.fixture(scope="module")
def splits() -> Splits:
    return analysed("--data.max_per_class=null").data.load()


def test_it_takes_a_twentieth_of_the_training(splits: Splits) -> None:
    """By hand. RoLI with PGD-1: an epoch of updates of the head (2 passes of the attack and 1), 60
    of all weights (2 and 3), after each a validation by PGD-1 (1 + 2). Each image is looked at
    clean (1), searched by PGD-2 (4) and looked at again (1)."""
    found = plan(analysed("--finetune.epochs=60", "--analysis_images=1000"), splits)
    n, train, val = found.points, len(splits.train), len(splits.val)
    assert (found.left_out, found.calibration, 32 < n < val) == ((), 128, True)
    stages = 2 * 2 * 2 * n + 3 * 2 * n * 5 + 2 * n  # clean, attacked, and held in each stage
    calibration = (val + 128 + 64) * 6  # of both splits, and of what examples are chosen from
    allowed = 0.05 * (train * (1 * 3 + 60 * 5) + 61 * val * (1 + 2))
    assert 0.85 * allowed < stages + calibration + n * 5 * 4 <= allowed  # and the curve


def test_what_does_not_fit_is_left_out_and_named(splits: Splits) -> None:
    left = [
        plan(analysed(f"--finetune.epochs={epochs}", "--analysis_images=1000"), splits)
        for epochs in (60, 40, 20, 2)
    ]
    assert [len(own.left_out) for own in left] == [0, 1, 3, 4]
    assert left[1].left_out == ("curve",) and left[3].left_out[-1] == ATTACKED
    for own in left[1:]:
        (note,) = own.notes
        assert all(part in note for part in own.left_out)
        assert "python -m roli_fast.analyze RUN --images" in note
    shared = plan(analysed("--finetune.epochs=60", "--analysis_images=1000"), splits, world=4)
    assert shared.left_out, "four processes trained, one analyses"
    capped = plan(analysed("--analysis_images=20", "--finetune.epochs=60"), splits)
    assert (capped.points, capped.calibration, capped.left_out) == (20, 20, ())
    asked = plan(analysed(), splits, 500)
    assert (asked.points, asked.calibration, asked.left_out) == (500, 500, ())


def test_a_short_training_keeps_its_clean_numbers(tmp_path: Path) -> None:
    run(analysed("--report=true", "--probe.optimizer.lr=null"), tmp_path / "run", quiet=True)
    tree = analysis_of(tmp_path / "run")
    assert tree["stages"][0]["lr"] > 0, "the rate that null chose"
    assert not set(tree) & {"calibration", "curve", "examples"} and ATTACKED in tree["left_out"]
    for stage in tree["stages"]:
        assert (
            stage["end"]["residual"]["clean"] > 0 == bool(stage["end"]["residual"]["adversarial"])
        )
        assert stage["change"]["clean"]["cka"] > 0
        assert stage["change"]["adversarial"]["cka"] is None
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "left out, for it would take more than a twentieth" in page
    assert "-" in analysis_table(tmp_path / "run", ["roli"])


def test_a_dear_attack_makes_way_and_of_several_norms_the_first_is_looked_at(
    splits: Splits,
) -> None:
    cheap = plan(analysed("--test=autoattack"), splits, 9)
    assert cheap.described == {"label": "pgd-1", "norm": "linf", "eps": 0.04}
    assert "autoattack" in cheap.notes[0] and "take too long" in cheap.notes[0]
    own = plan(analysed(), splits, 9)
    assert (own.described["label"], own.notes) == ("pgd-2", ())
    several = analysed("--threat.norm=l2", "--threat.other_norms=linf", "--threat.other_eps=0.1")
    assert plan(several, splits, 9).described == {"label": "pgd-2", "norm": "l2", "eps": 0.04}


def test_the_first_images_are_one_order_without_augmentation(splits: Splits) -> None:
    some, more = first_images(splits.train, 9), first_images(splits.train, 20)
    assert some.ids.tolist() == more.ids.tolist()[:9]
    assert sorted(some.labels.tolist()) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert some.augment is None
