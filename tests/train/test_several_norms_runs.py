"""A run whose attacker may choose any of three norms: validation, test, summary, resume."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small import records, run_small, small

from roli_fast import models
from roli_fast.data import Batch
from roli_fast.errors import ArgumentError
from roli_fast.evaluate import Evaluation, evaluate, read_report
from roli_fast.evaluate.__main__ import parse as parse_evaluation
from roli_fast.evaluate.run import run as run_evaluation
from roli_fast.evaluate.shares import to_flags
from roli_fast.seeds import derive_seed
from roli_fast.train import loop

NORMS = ("linf", "l2", "l1")
THREE = ["--threat.other_norms=l2,l1", "--threat.other_eps=0.7,8"]
SHORT = [*THREE, "--seeds=1", "--probe.epochs=1", "--probe.attack.eps=0.004", "--ranli.epochs=2"]
SHORT += ["--finetune.attack.eps=0.004", "--finetune.epochs=4", "--finetune.batch_size=16"]
SHORT += ["--finetune.optimizer.lr=5e-3", "--finetune.warmup_epochs=0"]
"""Little robustness and few images: the norms disagree, epochs too; of seed 0 nothing is learnt."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("three") / "run"
    run_small(folder, *SHORT)
    return folder


def test_the_union_holds_image_by_image(finished: Path) -> None:
    tests = [json.loads(path.read_text()) for path in finished.glob("seed-1/*/test.json")]
    told_apart = False
    for test in tests:
        assert list(test["robust_flags"]) == [*NORMS, "union"] == list(test["robust_accuracy"])
        each = [to_flags(test["robust_flags"][norm]) for norm in NORMS]
        union = each[0] & each[1] & each[2] & to_flags(test["clean_flags"])
        assert torch.equal(to_flags(test["robust_flags"]["union"]), union)
        assert test["robust_accuracy"]["union"] == union.double().mean().item()
        told_apart |= any(not torch.equal(union, one) for one in each)
    assert told_apart and len(tests) == 2


def test_an_epoch_that_is_best_in_every_norm_can_be_worse_in_the_union(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half and half of the images right in two norms, none in both; then a quarter, the same."""
    script = iter([("1100", "0011", "1111"), ("1000", "1000", "1001")])

    def validate(_model: Any, _batches: Any, used: Any, **_options: Any) -> Evaluation:
        assert list(used) == list(NORMS)
        return Evaluation(
            to_flags("1111"), dict(zip(used, map(to_flags, next(script)), strict=True))
        )

    monkeypatch.setattr(loop, "evaluate", validate)
    run_small(tmp_path / "run", *THREE, "--methods=probe", "--probe.epochs=2")
    first, second = records(tmp_path / "run")
    assert [first[f"validation_{norm}_accuracy"] for norm in NORMS] == [0.5, 0.5, 1.0]
    assert [row["validation_robust_accuracy"] for row in (first, second)] == [0.0, 0.25]
    path = tmp_path / "run/seed-0/probe/stage-1-probe/result.json"
    assert json.loads(path.read_text())["best_epoch"] == 1


def test_a_norms_column_is_what_a_run_in_this_norm_alone_tests(finished: Path) -> None:
    experiment = small(*SHORT)
    splits = experiment.data.load()
    model = models.create(experiment.model, num_classes=3)
    path = finished / "seed-1/roli/stage-2-finetune/best.safetensors"
    models.load_backbone(model, path, with_head=True)
    test = json.loads((finished / "seed-1/roli/test.json").read_text())
    for threat in experiment.threat.each:
        own = small(f"--threat.norm={threat.norm}", f"--threat.eps={threat.eps}")
        (attack,) = own.evaluations("test").values()
        batch = splits.test.plain().batch(torch.arange(len(splits.test)))
        alone = evaluate(model, [Batch(*batch)], [attack], seed=derive_seed(1, "test"))
        assert torch.equal(alone.robust["pgd-3"], to_flags(test["robust_flags"][threat.norm]))


def test_an_evaluation_takes_the_runs_norms_and_radii(finished: Path, tmp_path: Path) -> None:
    part = str(finished / "seed-1/roli")
    config = parse_evaluation(["--model", part, "--attacks=pgd-2"]).config
    assert (config.norm, config.eps) == (NORMS, (0.04, 0.7, 8.0))
    run_evaluation(config, tmp_path / "out", quiet=True)
    report = read_report(tmp_path / "out")
    assert tuple(report.robust) == NORMS
    together = report.robust["linf"] & report.robust["l2"] & report.robust["l1"]
    assert torch.equal(report.union, together)


def test_one_radius_for_three_norms_is_told_before_anything_runs() -> None:
    with pytest.raises(ArgumentError, match=r"`test\.eps`: expected null .*\(linf, l2, l1\), got"):
        small(*THREE, "--test.eps=0.1")
