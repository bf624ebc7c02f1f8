"""Averages of weights: the recursion by hand, the candidate that is kept, stops."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small import assert_same_weights, records, run_small, small, stop_at
from torch import nn

from roli_fast.errors import ConfigError, InterruptedRunError, RoliFastError
from roli_fast.evaluate import Evaluation
from roli_fast.train import loop, run_directory
from roli_fast.train.averaging import Average, Averaging
from roli_fast.train.checkpoint import copy_tensors
from roli_fast.train.experiment import SCHEMA

RESNET = ["--model.name=resnet18"] + [
    "--model.options={'layers': [1,1,1,1], 'channels': [8,8,16,16], 'stem_width': 8}"
]
ONE = ["--methods=ranli", "--ranli.batch_size=24", "--ranli.epochs=2", "--ranli.attack.steps=1"]
ONE += [*RESNET, "--ranli.averaging.decay=null", "--ranli.averaging.start=0.4"]
"""72 images: 6 updates, of which the last 3 are averaged."""

STAGE = "seed-0/ranli/stage-1-ranli"


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        (None, [1.0, 3 / 2, 7 / 3]),
        # 2/11 of 1 and 9/11 of 2, then 3/12 of that and 9/12 of 4
        (0.999, [1.0, 20 / 11, 38 / 11]),
        (0.125, [1.0, 1 / 8 + 14 / 8, 15 / 64 + 28 / 8]),
    ],
)
def test_the_recursion_by_hand_in_fp64(decay: float | None, expected: list[float]) -> None:
    """Weights 1, 2 and 4 of the last three of four updates; statistics likewise, counters as they
    are, and what does not train is no part of it."""
    model = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1)).double()
    average = Average(Averaging(decay, start=0.25), model, ["0.weight"], updates=4)
    found = []
    for position, value in enumerate((9.0, 1.0, 2.0, 4.0)):
        with torch.no_grad():
            model[0].weight.fill_(value)
            model[1].running_mean.fill_(10 * value)
            model[1].num_batches_tracked.fill_(position)
        average.add(position)
        found += [t["0.weight"].item() for t in [average.tensors] if t]
    assert found == pytest.approx(expected, abs=1e-15)
    mean, count = (average.tensors[f"1.{n}"] for n in ("running_mean", "num_batches_tracked"))
    assert mean.item() == pytest.approx(10 * expected[-1]) and count.item() == 3
    assert "0.bias" not in average.tensors
    with average.in_model():
        assert model[0].weight.item() == found[-1]
    assert model[0].weight.item() == 4.0


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """A run in fp64, and its weights after every update."""
    folder, states = tmp_path_factory.mktemp("straight") / "run", list[dict[str, Any]]()
    update, create = loop.StageLoop._update, run_directory.create

    def watched(self: loop.StageLoop, epoch: int, batch: Any) -> Any:
        row = update(self, epoch, batch)
        states.append(copy_tensors(self.model.backbone.state_dict()))
        return row

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.StageLoop, "_update", watched)
        patch.setattr(run_directory, "create", lambda *a, **o: create(*a, **o).double())
        run_small(folder, *ONE)
    return folder, states


def test_a_run_saves_the_mean_of_its_last_updates(straight: tuple[Path, list[Any]]) -> None:
    """And the weights themselves, and names both accuracies."""
    folder, states = straight
    averaged = load_file(folder / STAGE / "averaged.safetensors")
    last = load_file(folder / STAGE / "last.safetensors")
    assert len(states) == 6 and not torch.equal(states[3]["fc.weight"], states[5]["fc.weight"])
    for name, tensor in averaged.items():
        assert torch.equal(last[name], states[-1][name])
        mean = sum(state[name].double() for state in states[3:]) / 3
        expected = mean if tensor.is_floating_point() else last[name]
        torch.testing.assert_close(tensor, expected.to(tensor.dtype), rtol=1e-12, atol=1e-14)
    result = json.loads((folder / STAGE / "result.json").read_text())
    assert [*result["candidates"]] in (["raw"], ["raw", "averaged"])
    assert result["best_validation_accuracy"] == max(result["candidates"].values())
    assert ["validation_averaged_accuracy" in row for row in records(folder)] == [False, True]


@pytest.mark.parametrize("where", ["update", "validation"])
def test_a_stop_costs_nothing(
    straight: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """After the fifth update, and while the average stands in the model."""
    folder, (create, evaluate) = tmp_path / "run", (run_directory.create, loop.evaluate)
    monkeypatch.setattr(run_directory, "create", lambda *a, **o: create(*a, **o).double())
    calls = []

    def stopping(*given: Any, **options: Any) -> Any:
        calls.append(given)
        if len(calls) == 3:  # of the second epoch, after the weights themselves
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*given, **options)

    with monkeypatch.context() as patch, pytest.raises(InterruptedRunError):
        if where == "update":
            stop_at(patch, 5)
        else:
            patch.setattr(loop, "evaluate", stopping)
        run_small(folder, *ONE)
    run_small(folder, *ONE)
    assert_same_weights(straight[0], folder)
    assert records(straight[0]) == records(folder)


@pytest.mark.parametrize(
    ("select", "scores", "expected"),
    [
        ("best", [(0.3, 0.4), (0.5, 0.2)], ("raw", 1, 0.5)),
        ("best", [(0.3, 0.6), (0.5, 0.5)], ("averaged", 0, 0.6)),
        ("best", [(0.1, 0.2), (0.5, 0.5)], ("averaged", 1, 0.5)),  # of equals the average
        ("last", [(0.3, 0.9), (0.5, 0.2)], ("averaged", 1, 0.2)),
    ],
)
def test_the_better_weights_are_the_result(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    select: str,
    scores: list[tuple[float, float]],
    expected: tuple[str, int, float],
) -> None:
    script = iter([score for pair in scores for score in pair])
    states: list[dict[str, torch.Tensor]] = []

    def validate(model: Any, *_given: Any, **_options: Any) -> Evaluation:
        states.append(copy_tensors(model.backbone.state_dict()))
        flags = torch.arange(100) < 100 * next(script)
        return Evaluation(torch.ones(100, dtype=torch.bool), {"pgd-2": flags})

    monkeypatch.setattr(loop, "evaluate", validate)
    run_small(tmp_path / "run", *ONE, "--ranli.averaging.start=0", f"--ranli.select={select}")
    which, epoch, score = expected
    best = load_file(tmp_path / "run" / STAGE / "best.safetensors")
    for name, tensor in states[2 * epoch + (which == "averaged")].items():
        assert torch.equal(best[name], tensor), name
    result = json.loads((tmp_path / "run" / STAGE / "result.json").read_text())
    assert (result["best_epoch"], result["best_validation_accuracy"]) == (epoch, score)
    assert result["candidates"] == dict(zip(("raw", "averaged"), scores[epoch], strict=True))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["methods"]["ranli"]["stages"][0]["candidates"] == result["candidates"]


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        (["--finetune.averaging.decay=1"], r"averaging\.decay`: expected a number in \[0, 1\)"),
        (["--finetune.averaging.start=1"], r"averaging\.start`: expected a number in \[0, 1\)"),
        (
            ["--finetune.averaging={}", "--finetune.gradient_projection={}"],
            "averaging`: expected null with gradient_projection",
        ),
        (
            ["--methods=lp", "--lp.averaging={}"],
            r"averaging`: expected null, with optimizer\.name lbfgs",
        ),
    ],
)
def test_what_is_refused(flags: list[str], match: str) -> None:
    with pytest.raises((ConfigError, RoliFastError), match=match):
        small(*flags)


def test_its_validations_count_twice() -> None:
    plain, averaged = (small(*flags) for flags in ([], ["--finetune.averaging={}"]))
    looks, splits = plain.evaluations("validation").values(), plain.data.load()
    each = [e.finetune.passes(e.threat, looks, splits)[1] for e in (plain, averaged)]
    look = 1 + 2 * 2  # PGD-2: so many forwards and backwards to the image
    assert each[1] - each[0] == plain.finetune.epochs * len(splits.val) * look
    assert SCHEMA.to_tree(averaged)["finetune"]["averaging"] == {"decay": 0.999, "start": 0.0}
