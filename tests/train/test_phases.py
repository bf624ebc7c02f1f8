"""Epochs of gradient projection beside a loop written out by hand; stopped and gone on with."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import epochs_by_hand
import pytest
import torch
from safetensors.torch import load_file
from small import assert_same_weights, records, run_small, small

from roli_fast.data import Batch
from roli_fast.errors import InterruptedRunError
from roli_fast.train import loop, run_directory

GP = "--ranli.gradient_projection"
SGD = ["--ranli.optimizer.name=sgd", "--ranli.optimizer.lr=0.1", "--ranli.warmup_epochs=0"]
ONE = ["--methods=ranli", "--ranli.batch_size=24", "--ranli.epochs=2", "--ranli.attack.steps=2"]
"""72 images: 3 updates in each half of an epoch, 12 in all."""

RESNET = ["--model.name=resnet18"] + [
    "--model.options={'layers': [1,1,1,1], 'channels': [8,8,16,16], 'stem_width': 8}"
]


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


KINDS = {
    "vit": ["--model.options.proj_drop_rate=0.1", "--model.options.drop_path_rate=0.1"],
    "resnet, sgd": [*RESNET, *SGD],
}


class Bars:
    """What the bars of the runs that follow show: where each begins and ends, and its moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.spans: list[tuple[int, int]] = []
        self.moves: list[int] = []
        original = loop.StageLoop._bar

        def kept(stage: loop.StageLoop) -> Any:
            bar = original(stage)
            self.spans.append((bar.n, bar.total))
            bar.update = self.moves.append  # pyright: ignore[reportAttributeAccessIssue]
            return bar

        monkeypatch.setattr(loop.StageLoop, "_bar", kept)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {kind: tmp_path_factory.mktemp("straight") / "run" for kind in KINDS}
    with pytest.MonkeyPatch.context() as patch:
        bars = Bars(patch)
        for kind, folder in folders.items():
            run_small(folder, *ONE, f"{GP}.beta=0.4", *KINDS[kind])
    assert bars.spans == [(0, 2 * 2 * 72)] * 2 and bars.moves == [24] * 24
    return folders


def test_counts_and_records(straight: dict[str, Path]) -> None:
    path = straight["vit"] / "seed-0/ranli/stage-1-ranli/result.json"
    assert json.loads(path.read_text())["train_images"] == 2 * 2 * 72
    rows = records(straight["vit"])
    assert [row["epoch"] for row in rows] == [0, 1]
    for row in rows:
        assert 0 < row["natural_train_loss"] < row["train_loss"]  # clean images are easier
        assert 0 <= row["natural_train_accuracy"] <= 1


@pytest.mark.parametrize(
    ("kind", "after", "how"),
    [("vit", 1, "signal"), ("vit", 3, "signal"), ("vit", 9, "crash"), ("resnet, sgd", 9, "signal")],
)
def test_a_stop_at_any_update_of_either_half(
    straight: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    after: int,
    how: str,
) -> None:
    """A signal saves after the update; a crash before the next one costs what was not saved."""
    folder, flags = tmp_path / "run", [*ONE, f"{GP}.beta=0.4", *KINDS[kind]]
    original, count = loop.StageLoop._update, 0

    def stop(self: loop.StageLoop, epoch: int, batch: Batch) -> torch.Tensor:
        nonlocal count
        count += 1
        if count == after and how == "signal":
            os.kill(os.getpid(), signal.SIGTERM)
        if count == after + 1 and how == "crash":
            raise KeyError("power cut")
        return original(self, epoch, batch)

    with monkeypatch.context() as patch:
        patch.setattr(loop.StageLoop, "_update", stop)
        if how == "crash":  # saved once, after two updates
            patch.setattr(loop.StageLoop, "_checkpoint_due", lambda _self: count == 2)
        with pytest.raises(InterruptedRunError if how == "signal" else KeyError):
            run_small(folder, *flags)
    bars = Bars(monkeypatch)
    run_small(folder, *flags)
    assert bars.spans == [(24 * (after if how == "signal" else 2), 288)]
    assert_same_weights(straight[kind], folder)
    assert records(straight[kind]) == records(folder)
