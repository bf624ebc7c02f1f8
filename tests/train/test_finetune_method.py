"""The method finetune: a classifier is tuned further, from its own head."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small import before_stages, run_small

from roli_fast.errors import CheckpointError, ConfigError
from roli_fast.models import Model, create, save_model
from roli_fast.train import loop

STILL = ["--methods=finetune", "--finetune.epochs=1", "--finetune.optimizer.lr=1e-12"]
"""One epoch that moves nothing that shows."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    run_small(folder, "--methods=ranli", "--ranli.epochs=1")
    return folder / "seed-0/ranli/stage-1-ranli/best.safetensors"


def test_it_begins_with_the_head_of_the_file(trained: Path, tmp_path: Path) -> None:
    summary = run_small(tmp_path / "run", *STILL, f"--model.weights={trained}")
    (stage,) = summary["methods"]["finetune"]["stages"]
    assert stage["name"] == "finetune"
    before = load_file(trained)
    after = load_file(tmp_path / "run/seed-0/finetune/stage-1-finetune/last.safetensors")
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=0, atol=1e-9)


def test_other_methods_beside_it_have_their_fresh_head(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads: dict[str, torch.Tensor] = {}

    def look(stage: loop.StageLoop) -> None:
        heads[str(stage.job.stage_id["method"])] = stage.model.head.weight.detach().clone()

    before_stages(monkeypatch, look)
    flags = ["--methods=finetune,ranli", "--ranli.epochs=1", "--head_init=zero"]
    run_small(tmp_path / "run", *STILL[1:], *flags, f"--model.weights={trained}")
    assert torch.equal(heads["finetune"], load_file(trained)["head.weight"])
    assert not heads["ranli"].any()


def test_without_a_head_it_says_what_is_missing(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"`model.weights`.*finetune, got no weights.*FILE"):
        run_small(tmp_path / "a", *STILL)
    source = ["--source=digits", "--source.classes=1,2", "--pretrain.epochs=1"]
    with pytest.raises(ConfigError, match=r"`source`.*2 classes \(1, 2\), where data has 3.*ranli"):
        run_small(tmp_path / "b", *STILL, *source)
    plain = tmp_path / "plain.safetensors"
    save_file(load_file(trained), plain)  # without a card
    with pytest.raises(CheckpointError, match=r"head\.weight has shape \(3, 16\)"):
        run_small(tmp_path / "c", *STILL, "--data.classes=1,2,3,4", f"--model.weights={plain}")
    assert not any((tmp_path / name).exists() for name in "abc")


@pytest.mark.parametrize("classes", ["7,6,5", "0,1,2"])
def test_a_head_of_other_classes_is_refused(classes: str, trained: Path, tmp_path: Path) -> None:
    """Three others, and the same three in another order, would fit without a word."""
    flags = [*STILL, f"--data.classes={classes}", f"--model.weights={trained}"]
    with pytest.raises(ConfigError, match=r"`model.weights`.*classes \(5, 6, 7\), where.*ranli"):
        run_small(tmp_path / "run", *flags)
    assert not (tmp_path / "run").exists()


def test_weights_of_other_options_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An activation is no tensor: the file fits, and computes something else."""
    options: dict[str, Any] = {"widths": [4], "depths": [1], "stem_width": 4}
    path = tmp_path / "relu.safetensors"
    made = create(Model("preact_resnet18", options=options | {"activation": "relu"}), num_classes=3)
    save_model(made, path)
    config = Model("preact_resnet18", weights=str(path), options=options)
    create(config, num_classes=3, with_head=True)
    assert "relu" in caplog.text
    caplog.clear()
    same = replace(config, options=options | {"activation": "relu"})
    create(same, num_classes=3, with_head=True)
    assert "trained with" not in caplog.text
