"""The analysis that a run ends with: what it writes, a stop in the middle, and a failure."""

import json
import logging
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from analysed_run import analysed, analysis_of, run_analysed

from roli_fast import models
from roli_fast.errors import InterruptedRunError
from roli_fast.running.signals import Interrupt
from roli_fast.train import aftermath, method_analysis
from roli_fast.train.aftermath import analysis_table
from roli_fast.train.analysis_plan import first_images

DRIFT = {"absolute", "relative", "cosine", "cka"}
BOTH = {"clean", "adversarial"}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RoLI and RanLI, analysed."""
    folder = tmp_path_factory.mktemp("analysed") / "run"
    run_analysed(folder, "--methods=roli,ranli")
    return folder


def test_it_has_what_is_promised(run_dir: Path) -> None:
    tree = analysis_of(run_dir)
    assert tree["schema"] == 1
    assert tree["attack"] == {"label": "pgd-2", "norm": "linf", "eps": 0.04}
    assert tree["images"] == {"train": 64, "validation": 64, "test": 70}
    assert [(s["name"], s["lr"], s["epochs"]) for s in tree["stages"]] == [
        ("probe", 0.1, 1),
        ("finetune", 2e-3, 2),
    ]
    for stage in tree["stages"]:
        for point in (stage["start"], stage["end"]):
            assert set(point["head"]) == {"norm", "rows", "bias"}
            rows = np.array(point["head"]["rows"])
            assert point["head"]["norm"] == pytest.approx(np.sqrt((rows**2).sum()), rel=1e-6)
            for name in ("residual", "separation", "pairwise_cosine"):
                assert set(point[name]) == BOTH
            assert point["residual"]["adversarial"] > 0
            assert set(point["robust_drift"]) == {"absolute", "relative"}
        assert {name: set(part) for name, part in stage["change"].items()} == {
            "clean": DRIFT,
            "adversarial": DRIFT,
        }
    assert set(tree["calibration"]) == BOTH
    assert tree["calibration"]["clean"]["test_images"] == 70
    assert [p["eps"] for p in tree["curve"]["points"]] == pytest.approx(
        [0, 0.01, 0.02, 0.04, 0.06, 0.08]
    )
    assert tree["seconds"] > 0


def test_a_probe_moves_no_feature_and_hands_over_its_head(run_dir: Path) -> None:
    probe, finetune = analysis_of(run_dir)["stages"]
    assert probe["change"]["clean"]["absolute"] == 0
    assert probe["change"]["adversarial"]["absolute"] == 0
    assert probe["end"] == finetune["start"]
    assert finetune["change"]["clean"]["absolute"] > 0


def test_the_numbers_are_of_the_weights_that_are_kept(run_dir: Path) -> None:
    model = models.load(run_dir / "seed-0/roli/stage-2-finetune/best.safetensors")
    splits = analysed().data.load()
    images = first_images(splits.train, 64)
    batch = images.batch(torch.arange(len(images)))
    with torch.no_grad():
        p = model(batch.x).softmax(1)
    p[torch.arange(len(p)), batch.y] -= 1
    end = analysis_of(run_dir)["stages"][-1]["end"]
    assert end["head"]["norm"] == pytest.approx(model.head.weight.norm().item(), rel=1e-6)
    assert end["residual"]["clean"] == pytest.approx(p.norm(dim=1).mean().item(), rel=1e-5)


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
    assert np.abs(rounded / 255 - found["delta"]).max() <= 1 / 255
    assert np.abs(rounded).max() <= 0.04 * 255
    model = models.load(run_dir / "seed-0/roli/stage-2-finetune/best.safetensors").eval()
    pixels = torch.from_numpy(found["adversarial"]).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        confidence, prediction = model(pixels).softmax(1).max(1)
    assert found["adversarial_prediction"].tolist() == prediction.tolist()
    assert np.allclose(found["adversarial_confidence"], confidence.numpy(), atol=1e-5)
    splits = analysed().data.load()
    assert found["label"].tolist() == first_images(splits.test, 8).labels.tolist()


def test_the_second_table(run_dir: Path) -> None:
    lines = analysis_table(run_dir, ["roli", "ranli", "absent"]).splitlines()
    start = analysis_of(run_dir)["stages"][0]["start"]["head"]["norm"]
    assert lines[2].startswith("roli ")
    assert f"{start:.3g} > " in lines[2]
    assert lines[3].startswith("ranli ")
    assert not any("absent" in line for line in lines)
    assert analysis_table(run_dir, ["absent"]) == ""


def without_time(tree: dict[str, Any]) -> dict[str, Any]:
    return {name: part for name, part in tree.items() if name != "seconds"}


def test_a_stop_between_parts_and_one_in_the_middle(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often it is stopped, the end is that of an uninterrupted one."""
    folder, calls = tmp_path / "run", 0
    original = method_analysis.MethodAnalysis._after_batch
    noted: list[Interrupt] = []

    def stopping(self: method_analysis.MethodAnalysis, count: int) -> None:
        nonlocal calls
        calls += 1
        if calls in (3, 25):  # in the first stage; in the second one, the next time
            noted.append(self.context.interrupt)
            self.context.interrupt._note(signal.SIGTERM, None)
        original(self, count)

    monkeypatch.setattr(method_analysis.MethodAnalysis, "_after_batch", stopping)
    for parts in (0, 1):
        with pytest.raises(InterruptedRunError, match="SIGTERM"):
            run_analysed(folder)
        found = list(folder.rglob("analysis.json"))
        assert len(analysis_of(folder)["stages"] if found else []) == parts
    run_analysed(folder)
    assert len(noted) == 2
    again, straight = analysis_of(folder), analysis_of(run_dir)
    assert without_time(again) == without_time(straight)


def test_a_failed_analysis_loses_nothing_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no such thing")

    monkeypatch.setattr(method_analysis.MethodAnalysis, "_calibration", broken)
    monkeypatch.setattr(aftermath.report, "write", broken)
    folder = tmp_path / "run"
    with caplog.at_level(logging.WARNING):
        summary = run_analysed(folder, "--report=true")
    assert summary["methods"]["roli"]["test"]["images"] > 0
    assert "RuntimeError: no such thing" in caplog.text
    assert f"python -m roli_fast.analyze {folder / 'seed-0' / 'roli'}" in caplog.text
    assert f"python -m roli_fast.report {folder}" in caplog.text
    assert len(analysis_of(folder)["stages"]) == 2
    monkeypatch.undo()
    run_analysed(folder, "--report=true")
    assert "calibration" in analysis_of(folder)
    assert (folder / "report.html").is_file()


def test_no_test_image_is_looked_at_before_its_time(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep's cells are analysed on validation; what is chosen adds the rest."""
    folder = tmp_path / "run"
    run_analysed(folder, test=False)
    tree = analysis_of(folder)
    assert tree["images"]["test"] == 0
    assert not set(tree) & {"calibration", "curve", "examples"}
    assert not list(folder.rglob("examples.npz"))
    monkeypatch.setattr(method_analysis.MethodAnalysis, "_stage", None)  # not made twice
    run_analysed(folder)
    whole, straight = analysis_of(folder), analysis_of(run_dir)
    assert whole["calibration"] == straight["calibration"]
    assert whole["stages"] == straight["stages"]


def test_an_analysis_that_is_not_wanted(tmp_path: Path) -> None:
    run_analysed(tmp_path / "run", "--analysis_images=0", "--finetune.epochs=1")
    assert not list((tmp_path / "run").rglob("analysis.json"))
    assert not (tmp_path / "run" / "report.html").exists()


def test_a_signal_that_ends_decoding_workers_too_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error that torch makes of it is no failed analysis."""

    def stop(*_: Any) -> None:
        signal.raise_signal(signal.SIGTERM)
        raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Terminated.")

    monkeypatch.setattr(method_analysis.MethodAnalysis, "_stage", stop)
    with pytest.raises(InterruptedRunError, match="SIGTERM"):
        run_analysed(tmp_path / "run", "--finetune.epochs=1")
    assert not (tmp_path / "run" / "summary.json").exists()
