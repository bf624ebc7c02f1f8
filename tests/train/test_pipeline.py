"""A whole run: what each stage starts from, what it leaves, and what it reports."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small import run_small


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    state = torch.get_rng_state()
    run_small(folder)
    assert torch.equal(torch.get_rng_state(), state)
    return folder


def test_a_run_directory_has_everything(finished: Path) -> None:
    for stage in ("roli/stage-1-probe", "roli/stage-2-finetune", "ranli/stage-1-ranli"):
        files = {path.stem for path in (finished / "seed-0" / stage).iterdir()}
        assert files == {"best", "last", "head", "result"}
    environment = json.loads((finished / "environment.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__.split("+")[0]
    assert environment["threads"] == 1 and (finished / "config.yaml").is_file()
    summary = json.loads((finished / "summary.json").read_text())
    found = {
        name: [(stage["name"], stage["epochs"]) for stage in method["stages"]]
        for name, method in summary["methods"].items()
    }
    assert found == {"roli": [("probe", 2), ("finetune", 3)], "ranli": [("ranli", 5)]}
    for method in summary["methods"].values():
        assert 0 <= method["test"]["robust_accuracy"]["pgd-3"] <= method["test"]["clean_accuracy"]


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
