"""Stages whose objective keeps something beside the model: what leaves them, and resumes."""

from pathlib import Path

import pytest
import torch
from small import assert_same_weights, run_small, small, stop_at, weights

from roli_fast import models
from roli_fast.errors import ArgumentError, InterruptedRunError
from roli_fast.train.checks import check

NETWORK = (
    "--model.name=resnet18 --model.options.layers=1,1,1,1 --model.options.channels=8,8,8,16 "
    "--model.options.stem_width=8 --methods=ranli --ranli.epochs=3 --ranli.attack.steps=1 "
    "--ranli.batch_size=32"
).split()
KINDS = {
    "twins": ["--ranli.objective=twins", "--ranli.objective.beta=6"],
    "autolora": [
        *("--ranli.objective=autolora", "--ranli.schedule=auto"),
        *("--ranli.schedule.window=1", "--ranli.schedule.rises=1"),
    ],
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_plain_network_leaves_the_stage_and_a_resume_changes_nothing(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """72 images in updates of 32, 32 and 8, halved once more by accumulate."""
    flags = [*NETWORK, *KINDS[kind], "--ranli.accumulate=2"]
    summary = run_small(tmp_path / "straight", *flags)
    run_small(tmp_path / "ranli", *NETWORK, "--ranli.epochs=1")
    (ours,) = (
        t for p, t in weights(tmp_path / "straight").items() if p.endswith("best.safetensors")
    )
    (plain,) = (t for p, t in weights(tmp_path / "ranli").items() if p.endswith("best.safetensors"))
    assert ours.keys() == plain.keys()
    (path,) = (tmp_path / "straight").glob("**/best.safetensors")
    model = models.load(path)
    assert model(torch.rand(2, 3, 16, 16)).shape == (2, 3)
    (stage,) = summary["methods"]["ranli"]["stages"]
    assert stage["trainable_parameters"] > sum(p.numel() for p in model.parameters())
    with monkeypatch.context() as stopped, pytest.raises(InterruptedRunError):
        stop_at(stopped, 4)
        run_small(tmp_path / "run", *flags)
    run_small(tmp_path / "run", *flags)
    assert_same_weights(tmp_path / "straight", tmp_path / "run")


def test_twins_without_batch_norm_is_told_before_anything_trains() -> None:
    experiment = small("--methods=ranli", *KINDS["twins"])
    with pytest.raises(ArgumentError) as error:
        check(experiment, look=False)
    text = "`ranli.objective`: expected a network with BatchNorm, got twins for vit_"
    assert str(error.value).startswith(text) and "trades or autolora" in str(error.value)
