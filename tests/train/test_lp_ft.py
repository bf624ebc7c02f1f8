"""LP-FT is RoLI with the attack off: what runs, what selects, what each stage starts from."""

import dataclasses
import functools
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import several
import torch
from processes import together
from safetensors.torch import load_file
from small import RESNET, assert_same_weights, before_stages, records, run_small, small, weights

from roli_fast import models
from roli_fast.data import batches
from roli_fast.errors import ArgumentError, ConfigError, InterruptedRunError
from roli_fast.evaluate import evaluate
from roli_fast.train import linear_probe, run_directory
from roli_fast.train.checkpoint import copy_tensors
from roli_fast.train.objectives import Adversarial
from roli_fast.train.run_directory import RunStage, read_result

CLEAN = ["--methods=ft,lp_ft,lp", "--lp.optimizer.strengths=1e-2,1e-3"]
LORA = ["--finetune.tuning=lora", "--finetune.tuning.rank=2", "--finetune.head_scale=0.5"]


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clean") / "run"
    run_small(folder, *CLEAN, *LORA)
    return folder


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def test_clean_methods_are_selected_by_clean_accuracy_and_tested_by_the_attack(clean: Path) -> None:
    methods = json.loads((clean / "summary.json").read_text())["methods"]
    stages = {m: [(s["name"], s["epochs"]) for s in v["stages"]] for m, v in methods.items()}
    assert stages == {"ft": [("ft", 3)], "lp_ft": [("lp", 1), ("ft", 3)], "lp": [("lp", 1)]}
    assert all("pgd-3" in v["test"]["robust_accuracy"] for v in methods.values())
    rows = [row for row in records(clean) if row["method"] == "lp_ft" and row["stage"] == "ft"]
    assert len(rows) == 3 and not any("validation_robust_accuracy" in row for row in rows)
    scores = [row["validation_clean_accuracy"] for row in rows]
    best = result(clean / "seed-0/lp_ft/stage-2-ft")
    assert best["best_validation_accuracy"] == max(scores)
    assert best["best_epoch"] == scores.index(max(scores))


def test_the_probe_is_the_best_head_of_those_tried(clean: Path) -> None:
    found = result(clean / "seed-0/lp/stage-1-lp")
    tried = found["strengths"]
    assert [row["strength"] for row in tried] == [1e-2, 1e-3]
    assert read_result(clean / "seed-0/lp/stage-1-lp/result.json").strengths == tried  # a resume
    chosen = max(tried, key=lambda row: (row["validation_accuracy"], -row["validation_nll"]))
    assert found["strength"] == chosen["strength"]
    model = models.load(clean / "seed-0/lp/stage-1-lp/best.safetensors")
    assert found["head_norm"] == pytest.approx(float(model.head.weight.detach().norm()), rel=1e-6)
    (row,) = [row for row in records(clean) if row["method"] == "lp"]
    assert (row["strength"], row["head_norm"]) == (found["strength"], found["head_norm"])
    splits = small(*CLEAN).data.load()
    val = batches(splits.val.plain(), batch_size=24, seed=0, epoch=0, shuffle=False)
    accuracy = evaluate(model, val, []).clean_accuracy
    assert found["best_validation_accuracy"] == row["validation_clean_accuracy"] == accuracy


def test_both_methods_share_the_probe(clean: Path) -> None:
    first, second = (
        load_file(clean / f"seed-0/{method}/stage-1-lp/head.safetensors")
        for method in ("lp", "lp_ft")
    )
    assert all(torch.equal(first[name], tensor) for name, tensor in second.items())


def test_a_starting_model_is_what_the_loop_began_with(
    clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, torch.Tensor]] = []
    before_stages(monkeypatch, lambda loop: seen.append(copy_tensors(loop.model.state_dict())))
    experiment = small(*CLEAN, *LORA, "--methods=lp_ft")
    run_small(tmp_path / "run", *CLEAN, *LORA, "--methods=lp_ft")
    splits = experiment.data.load()
    model = RunStage(experiment, splits, clean, 0, "lp_ft", 2).starting_model()
    state = model.state_dict()
    assert state.keys() == seen[-1].keys() and any(name.endswith("lora_a") for name in state)
    assert all(torch.equal(state[n], t) for n, t in seen[-1].items())
    trains = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trains and all("lora" in n or n.startswith("backbone.head") for n in trains)
    head = load_file(clean / "seed-0/lp_ft/stage-1-lp/head.safetensors")  # half of it
    assert torch.equal(model.head.weight, 0.5 * head["weight"])
    assert torch.equal(model.head.bias, 0.5 * head["bias"])
    trained = RunStage(experiment, splits, clean, 0, "lp_ft", 2).trained_model().state_dict()
    for key, tensor in load_file(clean / "seed-0/lp_ft/stage-2-ft/best.safetensors").items():
        assert torch.equal(trained[f"backbone.{key}"], tensor)


def test_a_stop_in_the_probe_begins_it_again(
    clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = linear_probe.solve

    def stop(*arguments: Any, **options: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments, **options)

    flags = [*CLEAN, *LORA, "--methods=lp"]
    monkeypatch.setattr(linear_probe, "solve", stop)
    with pytest.raises(InterruptedRunError, match="SIGTERM"):
        run_small(tmp_path / "run", *flags)
    monkeypatch.undo()
    run_small(tmp_path / "run", *flags)
    assert_same_weights(clean / "seed-0/lp", tmp_path / "run/seed-0/lp")
    assert len(records(tmp_path / "run")) == 1


def test_the_head_alone_moves(tmp_path: Path) -> None:
    """A probe in training mode would move running statistics, without any gradient."""
    flags = ["--methods=lp", *RESNET]
    experiment = small(*flags)
    run_small(tmp_path / "run", *flags)
    fresh = RunStage(experiment, experiment.data.load(), tmp_path / "run", 0, "lp")
    probed = load_file(tmp_path / "run/seed-0/lp/stage-1-lp/best.safetensors")
    state = fresh.starting_model().state_dict()
    moved = [n for n, t in probed.items() if not torch.equal(state[f"backbone.{n}"], t)]
    assert sorted(moved) == ["fc.bias", "fc.weight"]


def test_two_processes_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an odd number of images each has half; the first one solves. In fp64."""
    flags = ["--methods=lp", "--data.max_per_class=25", "--lp.optimizer.strengths=1e-2,1e-1"]
    work = functools.partial(several.train, double=True, skip="--source")
    members = together(2, work, tmp_path / "two", *flags)
    assert [m.process.exitcode or m.value for m in members] == [0, 0], members
    create = run_directory.create
    monkeypatch.setattr(run_directory, "create", lambda *a, **o: create(*a, **o).double())
    run_small(tmp_path / "one", *flags)
    (one,), (two,) = records(tmp_path / "one"), records(tmp_path / "two")
    for name in ("validation_clean_accuracy", "validation_nll", "head_norm", "strength"):
        assert one[name] == pytest.approx(two[name], rel=1e-6), name
    pattern = "**/best.safetensors"
    first, second = weights(tmp_path / "one", pattern), weights(tmp_path / "two", pattern)
    for path, tensors in first.items():
        for name, tensor in tensors.items():
            torch.testing.assert_close(second[path][name], tensor, rtol=1e-5, atol=1e-5)


def test_a_null_ft_is_finetune_without_its_attack() -> None:
    more = [
        "--finetune.objective=trades",
        "--finetune.gradient_projection={}",
        "--finetune.epochs=7",
    ]
    experiment = small("--methods=ft,roli", *more)
    (_, stage) = experiment.stages("ft")[0]
    plain = {"attack": None, "objective": Adversarial(), "gradient_projection": None}
    assert stage == dataclasses.replace(experiment.finetune, **plain)
    smooth = small("--methods=ft", "--finetune.objective.label_smoothing=0.1").stages("ft")[0][1]
    assert smooth.objective == Adversarial(label_smoothing=0.1)
    own = small("--methods=lp_ft", "--ft.attack=null", "--ft.epochs=2").stages("lp_ft")
    assert [(name, stage.epochs) for name, stage in own] == [("lp", 1), ("ft", 2)]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--methods=lp", "--lp.attack=pgd"], ["`lp.attack`", "null", "pgd", "probe"]),
        (["--methods=ft", "--ft.epochs=2"], ["`ft.attack`", "null", "--ft.attack=null"]),
        (["--probe.optimizer.name=lbfgs"], ["`probe.attack`", "null", "sgd"]),
        (
            ["--methods=ranli", "--ranli.optimizer.name=lbfgs", "--ranli.attack=null"],
            ["`ranli.tuning`", "linear"],
        ),
        (["--lp.optimizer.strengths=[]"], ["strengths", "penalty"]),
    ],
)
def test_what_cannot_be_is_named(flags: list[str], words: list[str]) -> None:
    with pytest.raises((ArgumentError, ConfigError)) as caught:
        small(*flags)
    assert all(word in str(caught.value) for word in words), str(caught.value)
