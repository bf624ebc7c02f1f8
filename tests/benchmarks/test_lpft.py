"""The study of FT, LP-FT, RanLI and RoLI: verdicts by hand, and what is read from a run's files."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

import lpft
from lpft_claims import ADVERSARIAL, CLEAN, HYPOTHESES, judge, removed, removed_cleanly, verdict


@pytest.mark.parametrize(
    ("differences", "mean", "half", "said"),
    [
        ([1.0, 2.0, 3.0], 2.0, 4.3026527 / math.sqrt(3), "undecided"),
        ([1.9, 2.0, 2.1], 2.0, 0.43026527 / math.sqrt(3), "holds"),
        ([-1.9, -2.0, -2.1], -2.0, 0.43026527 / math.sqrt(3), "fails"),
        ([0.0, 0.0], 0.0, 0.0, "undecided"),
        ([5.0], 5.0, None, "undecided"),
        ([1.0, None, 1.0], None, None, "undecided"),
    ],
)
def test_a_verdict_by_hand(
    differences: list[float | None], mean: float | None, half: float | None, said: str
) -> None:
    """Student's quantile for two degrees of freedom is 4.303."""
    found = verdict(differences)
    assert found["verdict"] == said
    assert found["mean"] == (None if mean is None else pytest.approx(mean))
    assert found["half"] == (None if half is None else pytest.approx(half))


def point(norm: float, residual: float) -> dict[str, Any]:
    both = {"clean": residual, "adversarial": residual + 0.1}
    return {
        "head": {"norm": norm},
        "residual": both,
        "separation": {"clean": 1.0, "adversarial": None},
    }


def stage(start: dict[str, Any], end: dict[str, Any], drift: float) -> dict[str, Any]:
    change = {"absolute": drift, "relative": drift / 10, "cosine": 0.9, "cka": 0.8}
    step = {"ft_ratio": 0.2 * start["head"]["norm"], "predicted": 3.0, "actual": 2.0}
    step["predicted_logits"] = 3 * start["head"]["norm"]
    return {
        "start": start,
        "end": end,
        "change": {"clean": change, "adversarial": change},
        "one_step": {"clean": step, "adversarial": step},
    }


def calibration(ece: float) -> dict[str, Any]:
    own = {"fitted": ece > 0.1, "temperature": 2.0, "before": {"ece": ece}}
    return own | {"after": {"ece": ece / 2}, "with_clean_temperature": {"ece": 0.75 * ece}}


def write(folder: Path, probed: bool, seed: int) -> None:
    """A method whose numbers are those that the paper says, or would."""
    fresh, shift = point(1.0, 0.9), seed / 100
    own = [stage(fresh, point(4.0 + shift, 0.5), 0.0)] if probed else []
    start = point(4.0 + shift, 0.5) if probed else fresh
    own.append(stage(start, point(start["head"]["norm"] * 1.05, 0.1), 2.0 if probed else 5.0))
    found = {"stages": own, "calibration": {"clean": calibration(0.2 + shift)}}
    found["calibration"]["adversarial"] = calibration(0.3)
    test = {"clean_accuracy": 0.8 if probed else 0.7, "robust_accuracy": {"pgd-10": 0.5}}
    folder.mkdir(parents=True)
    (folder / "analysis.json").write_text(json.dumps(found))
    (folder / "scale_free.json").write_text(json.dumps({"pgd-20": 0.45 if probed else 0.4}))
    (folder / "test.json").write_text(json.dumps(test))


@pytest.fixture
def values(tmp_path: Path) -> Any:
    for seed in (0, 1, 2):
        for method in lpft.METHODS:
            write(tmp_path / f"seed-{seed}" / method, method in ("lp_ft", "roli"), seed)
        write(tmp_path / f"probe-{seed}/seed-{seed}/lp", False, seed)
    return lpft.values(tmp_path, {seed: tmp_path / f"probe-{seed}" for seed in (0, 1, 2)})


def test_numbers_are_those_of_the_fine_tune(values: Any) -> None:
    own = values["roli"]
    assert own["norm_fresh"] == [1, 1, 1] and own["norm_start"] == [4, 4.01, 4.02]
    assert own["norm_end"] == pytest.approx([4.2, 4.2105, 4.221])
    assert own["residual_adversarial"] == [0.6] * 3 and own["drift_clean"] == [2.0] * 3
    assert own["per_logit_clean"] == pytest.approx([1 / 4, 1 / 4.01, 1 / 4.02])
    assert own["ece_adversarial_borrowed"] == pytest.approx([0.225] * 3)
    assert own["separation_adversarial"] == [None] * 3
    norms = pytest.approx([1.05] * 3)
    ends = {"norm_end": norms, "residual_start": [0.9] * 3, "residual_end": [0.1] * 3}
    assert values["clean_probe"] == ends


def test_claims_by_hand(values: Any) -> None:
    found = {(row["setting"], row["claim"]): row for row in judge(values)}
    clean = {claim: row for (where, claim), row in found.items() if where.startswith("clean")}
    assert clean["features change less"]["mean"] == pytest.approx(3.0)
    steady = clean["fine-tuning changes its norm by less than 20%"]
    assert steady["seeds"] == pytest.approx([0.15] * 3)
    verdicts = {claim: row["verdict"] for claim, row in clean.items()}
    assert verdicts.pop("less well calibrated as it is") == "undecided"
    assert set(verdicts.values()) == {"holds"}
    assert removed(CLEAN)(values) == pytest.approx([1 - 0.5 / 0.9] * 3)
    assert removed(ADVERSARIAL)(values) == pytest.approx([0.4] * 3)
    claim = "adversarial probing ends with a smaller head than as many clean epochs"
    assert found["hypothesis a", claim]["seeds"] == pytest.approx([-2.95, -2.96, -2.97])
    assert found["hypothesis a", claim]["verdict"] == "fails"
    assert removed_cleanly(values) == pytest.approx([1 - 0.1 / 0.9] * 3)
    assert len(found) == len(CLEAN.claims()) + len(ADVERSARIAL.claims()) + len(HYPOTHESES)


def test_without_a_temperature_nothing_is_said_of_one(tmp_path: Path) -> None:
    """T stays 1 where none was fitted, so that errors before and after agree: no effect of T."""
    folder = tmp_path / "roli"
    write(folder, True, 0)
    found = json.loads((folder / "analysis.json").read_text())
    scaled = {"ece_clean_after", "temperature_clean", "ece_adversarial_borrowed"}
    assert not scaled & {name for name, value in lpft.numbers(folder).items() if value is None}
    found["calibration"]["clean"]["fitted"] = False
    (folder / "analysis.json").write_text(json.dumps(found))
    own = lpft.numbers(folder)
    assert {own[name] for name in scaled} == {None}
    assert own["ece_clean"] == 0.2 and own["ece_adversarial_after"] == 0.15


def test_every_fine_tune_has_the_same_updates() -> None:
    args = lpft.arguments(["--runs", "x", "--data", "digits"])
    found = lpft.experiment(args)
    stages = {method: found.stages(method)[-1][1] for method in lpft.METHODS}
    assert stages["ranli"] == stages["roli"] and stages["ft"] == stages["lp_ft"]
    for name in ("epochs", "optimizer", "batch_size", "warmup_epochs", "schedule", "select"):
        assert len({repr(getattr(stage, name)) for stage in stages.values()}) == 1
    alone = lpft.clean_probe(found, 1, Path("x"))
    assert alone.seeds == (1,) and alone.source is None
    assert str(alone.model.weights).endswith("/x/seed-1/pretrain/best.safetensors")
    ((_, probe),) = alone.stages("lp")
    assert probe.attack is None and probe.optimizer == found.probe.optimizer
    assert stages["ft"].attack is None and stages["roli"].attack is not None
