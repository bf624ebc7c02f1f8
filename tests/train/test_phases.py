"""Epochs of gradient projection beside a loop written out by hand."""

import json
from pathlib import Path
from typing import Any

import epochs_by_hand
import pytest
import torch
from safetensors.torch import load_file
from small import RESNET, records, run_small, small, stop_at

from roli_fast.errors import InterruptedRunError
from roli_fast.train import loop, run_directory

GP = "--ranli.gradient_projection"
SGD = ["--ranli.optimizer.name=sgd", "--ranli.optimizer.lr=0.1", "--ranli.warmup_epochs=0"]
ONE = ["--methods=ranli", "--ranli.batch_size=24", "--ranli.epochs=2", "--ranli.attack.steps=2"]
"""72 images: 3 updates in each half of an epoch, 12 in all."""


@pytest.mark.parametrize(
    ("flags", "how"),
    [
        ([f"{GP}.beta=0.3"], dict(beta=0.3)),
        ([f"{GP}.projection=true"], dict(beta=0.5, projection="true")),
        ([f"{GP}.beta=0.3", *RESNET], dict(beta=0.3)),
        ([f"{GP}.merge_statistics=false", *RESNET], dict(beta=0.5, statistics=False)),
    ],
    ids=["cosine", "true", "BN merged", "BN kept"],
)
def test_epochs_are_those_written_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], how: dict[str, Any]
) -> None:
    """In fp64: own optimisers with their own momentum, the same rates, the merge."""
    create = run_directory.create
    monkeypatch.setattr(run_directory, "create", lambda *a, **o: create(*a, **o).double())
    flags = [*ONE, *SGD, *flags]
    run_small(tmp_path / "run", *flags)
    experiment = small(*flags)
    model = epochs_by_hand.start(experiment).double()
    expected = epochs_by_hand.train(experiment, model, **how)
    found = load_file(tmp_path / "run/seed-0/ranli/stage-1-ranli/last.safetensors")
    fresh = epochs_by_hand.start(experiment).double().backbone.state_dict()
    plain = {name: tensor for name, tensor in expected.items() if name in found}
    assert sum(not torch.equal(fresh[name], tensor) for name, tensor in plain.items()) > 10
    for name, tensor in plain.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-10, atol=1e-12)


def test_counts_records_and_the_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bar of a run that goes on begins where it stopped."""
    spans: list[tuple[int, int]] = []
    moves: list[int] = []
    original = loop.StageLoop._bar

    def kept(stage: loop.StageLoop) -> Any:
        bar = original(stage)
        spans.append((bar.n, bar.total))
        bar.update = moves.append  # pyright: ignore[reportAttributeAccessIssue]
        return bar

    monkeypatch.setattr(loop.StageLoop, "_bar", kept)
    with monkeypatch.context() as patch, pytest.raises(InterruptedRunError):
        stop_at(patch, 4)
        run_small(tmp_path / "run", *ONE, f"{GP}.beta=0.4")
    run_small(tmp_path / "run", *ONE, f"{GP}.beta=0.4")
    assert spans == [(0, 2 * 2 * 72), (4 * 24, 2 * 2 * 72)] and moves == [24] * 12
    path = tmp_path / "run/seed-0/ranli/stage-1-ranli/result.json"
    assert json.loads(path.read_text())["train_images"] == 2 * 2 * 72
    rows = records(tmp_path / "run")
    assert [row["epoch"] for row in rows] == [0, 1]
    for row in rows:
        assert 0 < row["natural_train_loss"] < row["train_loss"]  # clean images are easier
        assert 0 <= row["natural_train_accuracy"] <= 1
