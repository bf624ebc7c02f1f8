"""A whole run: what each stage starts from, what it leaves, and what it reports."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small import assert_same_weights, run_small, small

from roli_fast import models


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    run_small(folder)
    return folder


def test_a_run_directory_has_everything(finished: Path) -> None:
    for name in ("config.yaml", "environment.json", "metrics.jsonl", "summary.json"):
        assert (finished / name).stat().st_size > 0
    for stage in ("roli/stage-1-probe", "roli/stage-2-finetune", "ranli/stage-1-ranli"):
        files = {path.name for path in (finished / "seed-0" / stage).iterdir()}
        assert files == {
            "best.safetensors",
            "last.safetensors",
            "head.safetensors",
            "result.json",
        }
    environment = json.loads((finished / "environment.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__.split("+")[0]
    assert environment["threads"] == 1


def test_the_summary_has_the_promised_fields(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    assert list(summary["methods"]) == ["roli", "ranli"]
    for method in summary["methods"].values():
        for stage in method["stages"]:
            assert stage["train_images_per_second"] > 0
        assert 0 <= method["test"]["robust_accuracy"]["pgd-3"] <= method["test"]["clean_accuracy"]
    stages = [(s["name"], s["epochs"]) for s in summary["methods"]["roli"]["stages"]]
    assert stages == [("probe", 2), ("finetune", 3)]
    assert summary["methods"]["ranli"]["stages"][0]["epochs"] == 5


def test_the_probe_trains_the_head_alone(finished: Path) -> None:
    experiment = small()
    splits = experiment.data.load()
    probe = load_file(finished / "seed-0/roli/stage-1-probe/last.safetensors")
    ranli = load_file(finished / "seed-0/ranli/stage-1-ranli/last.safetensors")
    from roli_fast.seeds import derive_seed

    fresh = models.create(
        experiment.model, num_classes=splits.num_classes, seed=derive_seed(0, "init")
    ).backbone.state_dict()
    for name, tensor in fresh.items():
        assert torch.equal(tensor, probe[name]) != name.startswith("head."), name
        assert not torch.equal(tensor, ranli[name]), name


def test_the_same_seed_gives_the_same_weights(finished: Path, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    run_small(tmp_path / "again")
    assert torch.equal(torch.get_rng_state(), state)
    assert_same_weights(finished, tmp_path / "again")


def test_pretraining_hands_its_backbone_to_every_method(tmp_path: Path) -> None:
    flags = ["--source=digits", "--source.classes=0,1", "--source.max_per_class=16"]
    flags += ["--pretrain.epochs=1", "--pretrain.attack.steps=1", "--methods=probe,ranli"]
    run_small(tmp_path / "run", *flags)
    base = tmp_path / "run/seed-0"
    source = load_file(base / "pretrain/best.safetensors")
    probed = load_file(base / "probe/stage-1-probe/last.safetensors")
    assert source["head.weight"].shape[0] == 2
    for name, tensor in source.items():
        if not name.startswith("head."):
            assert torch.equal(tensor, probed[name]), name


def test_robust_linear_is_roli_by_another_name(finished: Path, tmp_path: Path) -> None:
    """RanLI with the probe's head, and RoLI: the same stages, drawn from streams of other names."""
    summary = run_small(tmp_path / "run", "--methods=ranli", "--head_init=robust-linear")
    stages = [(s["name"], s["epochs"]) for s in summary["methods"]["ranli"]["stages"]]
    assert stages == [("probe", 2), ("ranli", 3)]
    here, there = tmp_path / "run/seed-0/ranli", finished / "seed-0/roli"
    for name in ("head.safetensors", "best.safetensors"):
        first = load_file(here / "stage-1-probe" / name)
        second = load_file(there / "stage-1-probe" / name)
        assert all(torch.equal(first[key], second[key]) for key in second)
