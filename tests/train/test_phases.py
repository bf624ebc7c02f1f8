"""Epochs of gradient projection beside a loop written out by hand; stopped and gone on with."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import epochs_by_hand
import pytest
import several
import torch
from processes import together
from safetensors.torch import load_file
from small import assert_same_weights, run_small, small, weights
from tiny_models import METHOD_OPTIONS

from roli_fast.data import Batch
from roli_fast.errors import InterruptedRunError, NonFiniteLossError
from roli_fast.peft import METHODS
from roli_fast.train import loop, starting
from roli_fast.train.checkpoint import load_resume
from roli_fast.train.objectives import Adversarial

GP = "--ranli.gradient_projection"
SGD = ["--ranli.optimizer.name=sgd", "--ranli.optimizer.lr=0.1", "--ranli.warmup_epochs=0"]
ONE = ["--methods=ranli", "--ranli.batch_size=24", "--ranli.epochs=2", "--ranli.attack.steps=2"]
"""72 images: 3 updates in each half of an epoch, 12 in all."""

RESNET = ["--model.name=resnet18"] + [
    "--model.options={'layers': [1,1,1,1], 'channels': [8,8,16,16], 'stem_width': 8}"
]


def last(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "seed-0/ranli/stage-1-ranli/last.safetensors")


def records(folder: Path) -> list[dict[str, Any]]:
    """The metrics without wall-clock values."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    timed = ("train_images_per_second", "data_wait_share")
    return [{k: v for k, v in json.loads(line).items() if k not in timed} for line in lines]


@pytest.fixture
def in_fp64(monkeypatch: pytest.MonkeyPatch) -> None:
    create = starting.create
    monkeypatch.setattr(starting, "create", lambda *a, **o: create(*a, **o).double())


@pytest.mark.usefixtures("in_fp64")
@pytest.mark.parametrize(
    ("flags", "how"),
    [
        ([f"{GP}.beta=0.3"], dict(beta=0.3)),
        ([f"{GP}.projection=true"], dict(beta=0.5, projection="true")),
        ([f"{GP}.natural=false"], dict(beta=0.5, halves=1)),
        ([f"{GP}.beta=0.3", *RESNET], dict(beta=0.3)),
        ([f"{GP}.merge_statistics=false", *RESNET], dict(beta=0.5, statistics=False)),
    ],
    ids=["cosine", "true", "control", "BN merged", "BN kept"],
)
def test_epochs_are_those_written_by_hand(
    tmp_path: Path, flags: list[str], how: dict[str, Any]
) -> None:
    """In fp64: own optimisers with their own momentum, the same rates, the merge."""
    flags = [*ONE, *SGD, *flags]
    run_small(tmp_path / "run", *flags)
    experiment = small(*flags)
    model = epochs_by_hand.start(experiment).double()
    expected = epochs_by_hand.train(experiment, model, **how)
    found, moved = last(tmp_path / "run"), 0
    plain = {name: tensor for name, tensor in expected.items() if name in found}
    assert len(plain) > 10
    fresh = epochs_by_hand.start(experiment).double().backbone.state_dict()
    for name, tensor in plain.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-10, atol=1e-12)
        moved += not torch.equal(fresh[name], tensor)
    assert moved > 10


def test_the_control_is_half_of_each_epochs_way(tmp_path: Path) -> None:
    """One epoch from the same weights: without projection all of g_a, here (1 - beta) of it."""
    flags = [*ONE, *SGD, "--ranli.epochs=1"]
    run_small(tmp_path / "plain", *flags)
    run_small(tmp_path / "slow", *flags, f"{GP}.natural=false", f"{GP}.beta=0.25")
    start = epochs_by_hand.start(small(*flags)).backbone.state_dict()
    plain, slow = last(tmp_path / "plain"), last(tmp_path / "slow")
    for name, tensor in plain.items():
        expected = start[name].double() + 0.75 * (tensor.double() - start[name])
        torch.testing.assert_close(slow[name].double(), expected, rtol=1e-6, atol=1e-8)


def test_without_it_nothing_changes(tmp_path: Path) -> None:
    run_small(tmp_path / "plain", *ONE)
    run_small(tmp_path / "null", *ONE, f"{GP}.beta=0.3", f"{GP}=null")
    assert_same_weights(tmp_path / "plain", tmp_path / "null")


class Passes:
    """What the training objective is called with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[bool, int]] = []
        original = Adversarial.__call__

        def watched(objective: Any, model: Any, batch: Batch, attack: Any, *rest: Any) -> Any:
            self.calls.append((attack is not None, len(batch.y)))
            return original(objective, model, batch, attack, *rest)

        monkeypatch.setattr(Adversarial, "__call__", watched)


def test_the_clean_half_costs_one_pass_a_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1 forward, no input gradient, 1 backward; plain cross-entropy whatever the objective is."""
    passes = Passes(monkeypatch)
    forwards: list[int] = []
    backwards: list[int] = []
    create = starting.create

    def hooked(*arguments: Any, **options: Any) -> Any:
        model = create(*arguments, **options)

        def count(_model: Any, inputs: Any, logits: torch.Tensor) -> None:
            if model.training:
                forwards.append(len(inputs[0]))
                logits.register_hook(lambda _grad: backwards.append(len(inputs[0])))

        model.register_forward_hook(count)
        return model

    monkeypatch.setattr(starting, "create", hooked)
    flags = [*ONE, "--ranli.batch_size=30", "--ranli.accumulate=2"]
    run_small(tmp_path / "run", *flags, f"{GP}={{}}", "--ranli.objective.label_smoothing=0.2")
    half = [15, 15, 15, 15, 6, 6]
    expected = [(attacked, size) for attacked in (False, True) for size in half] * 2
    assert passes.calls == expected
    assert forwards == backwards == half * 4


def test_counts_records_and_the_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bars: list[Any] = []
    moves: list[int] = []
    original = loop.StageLoop._bar

    def kept(self: loop.StageLoop) -> Any:
        bars.append(original(self))
        bars[-1].update = moves.append
        return bars[-1]

    monkeypatch.setattr(loop.StageLoop, "_bar", kept)
    run_small(tmp_path / "run", *ONE, f"{GP}.beta=0.3")
    result = json.loads((tmp_path / "run/seed-0/ranli/stage-1-ranli/result.json").read_text())
    assert result["train_images"] == 2 * 2 * 72
    assert [bar.total for bar in bars] == [288] and moves == [24] * 12
    rows = records(tmp_path / "run")
    assert [row["epoch"] for row in rows] == [0, 1]
    for row in rows:
        assert 0 < row["natural_train_loss"] < row["train_loss"]  # clean images are easier
        assert 0 <= row["natural_train_accuracy"] <= 1


KINDS = {
    "vit": ["--model.options.proj_drop_rate=0.1", "--model.options.drop_path_rate=0.1"],
    "resnet, sgd": [*RESNET, *SGD],
    "control": [f"{GP}.natural=false"],
    "bf16, parts": ["--ranli.engine.dtype=bfloat16", "--ranli.accumulate=2"],
}


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {kind: tmp_path_factory.mktemp("straight") / "run" for kind in KINDS}
    for kind, folder in folders.items():
        run_small(folder, *ONE, f"{GP}.beta=0.4", *KINDS[kind])
    return folders


CASES = [("vit", n, "signal") for n in (1, 3, 4, 6, 8, 11)]
CASES += [("vit", n, "crash") for n in (3, 4, 6, 9)]
CASES += [("resnet, sgd", 2, "signal"), ("resnet, sgd", 9, "signal"), ("resnet, sgd", 5, "crash")]
CASES += [("control", 2, "signal"), ("control", 3, "crash"), ("bf16, parts", 5, "signal")]


@pytest.mark.parametrize(("kind", "after", "how"), CASES)
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

    monkeypatch.setattr(loop.StageLoop, "_update", stop)
    if how == "crash":
        # saved once, after two updates
        monkeypatch.setattr(loop.StageLoop, "_checkpoint_due", lambda _self: count == min(after, 2))
    with pytest.raises(InterruptedRunError if how == "signal" else KeyError):
        run_small(folder, *flags)
    monkeypatch.undo()
    bar: list[int] = []
    monkeypatch.setattr(loop.StageLoop, "_bar", noted(bar))
    run_small(folder, *flags)
    saved = after if how == "signal" else min(after, 2)
    assert bar == [24 * saved]
    assert_same_weights(straight[kind], folder)
    assert records(straight[kind]) == records(folder)


def noted(bar: list[int]) -> Any:
    """A `_bar` that notes where it starts."""
    original = loop.StageLoop._bar

    def kept(self: loop.StageLoop) -> Any:
        made = original(self)
        bar.append(made.n)
        return made

    return kept


def test_a_signal_in_the_validation_after_a_merge(
    straight: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The merge is not made twice."""
    folder, flags = tmp_path / "run", [*ONE, f"{GP}.beta=0.4", *KINDS["vit"]]
    evaluate = loop.evaluate

    def stopped(*arguments: Any, **options: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*arguments, **options)

    for _epoch in range(2):
        monkeypatch.setattr(loop, "evaluate", stopped)
        with pytest.raises(InterruptedRunError):
            run_small(folder, *flags)
        monkeypatch.undo()
        saved = load_resume(folder / "seed-0/ranli/stage-1-ranli/resume.safetensors")
        assert (saved.progress.phase, saved.progress.step, saved.kept) == (2, 3, {})
        evaluated = iter([evaluate])

        def once(*arguments: Any, _left: Any = evaluated, **options: Any) -> Any:
            return next(_left, stopped)(*arguments, **options)

        monkeypatch.setattr(loop, "evaluate", once)
        if _epoch == 0:
            with pytest.raises(InterruptedRunError):
                run_small(folder, *flags)
        monkeypatch.undo()
    run_small(folder, *flags)
    assert_same_weights(straight["vit"], folder)
    assert records(straight["vit"]) == records(folder)


@pytest.mark.parametrize("key", METHODS.names())
def test_every_tuning_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    """Only what trains is kept and merged; the rest stays bit for bit."""
    options = METHOD_OPTIONS.get(key, {})
    tuning = [f"--ranli.tuning={key}", *(f"--ranli.tuning.{n}={v}" for n, v in options.items())]
    flags = [*ONE, *tuning, f"{GP}={{}}"]
    sizes: set[tuple[int, int]] = set()
    original = loop.StageLoop._update

    def seen(self: loop.StageLoop, epoch: int, batch: Batch) -> torch.Tensor:
        sizes.add((len(self.phases.kept["start"]), len(self.names)))
        return original(self, epoch, batch)

    monkeypatch.setattr(loop.StageLoop, "_update", seen)
    run_small(tmp_path / "run", *flags)
    ((kept, trained),) = sizes
    assert trained <= kept <= trained + 2  # beside them the normalisation's mean and deviation
    fresh = epochs_by_hand.start(small(*flags)).backbone.state_dict()
    found = last(tmp_path / "run")
    changed = [n for n, t in fresh.items() if n in found and not torch.equal(found[n], t)]
    assert changed or key not in ("full", "linear", "bias")
    assert all(torch.isfinite(t.float()).all() for t in found.values())


@pytest.mark.parametrize(("after", "words"), [(1, "the natural loss is nan"), (4, "the loss")])
def test_a_loss_of_nan_says_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int, words: str
) -> None:
    original, count = loop.StageLoop._update, 0

    def poison(self: loop.StageLoop, epoch: int, batch: Batch) -> torch.Tensor:
        nonlocal count
        count += 1
        return original(self, epoch, batch) * (torch.nan if count == after else 1.0)

    monkeypatch.setattr(loop.StageLoop, "_update", poison)
    with pytest.raises(NonFiniteLossError, match=f"{words} is nan at epoch 0, step 0|{words}"):
        run_small(tmp_path / "run", *ONE, f"{GP}={{}}")


def test_nan_weights_at_the_end_of_the_clean_half_reach_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, count = loop.StageLoop._update, 0

    def poison(self: loop.StageLoop, epoch: int, batch: Batch) -> torch.Tensor:
        nonlocal count
        count += 1
        row = original(self, epoch, batch)
        if count == 3:
            with torch.no_grad():
                self.model.head.weight.fill_(float("nan"))
        return row

    monkeypatch.setattr(loop.StageLoop, "_update", poison)
    with pytest.raises(NonFiniteLossError, match="head.weight is no longer finite at epoch 0"):
        run_small(tmp_path / "run", *ONE, f"{GP}={{}}", "--checkpoint_minutes=0")
    for tensors in weights(tmp_path / "run").values():
        assert all(torch.isfinite(tensor.float()).all() for tensor in tensors.values())


DOUBLE = ["--finetune.gradient_projection.beta=0.4"]


def codes(members: list[Any]) -> list[Any]:
    return [member.process.exitcode or member.value for member in members]


def test_two_processes_are_one(tmp_path: Path) -> None:
    """In fp64, where only the order of sums tells them apart; stopped in the clean half."""
    one, two = tmp_path / "one", tmp_path / "two"
    assert codes(together(1, several.train_double, one, *DOUBLE)) == [0]
    members = together(2, several.struck_double, "SIGTERM", 1, 9, two, *DOUBLE)
    assert codes(members) == [143, 143], members
    assert codes(together(2, several.train_double, two)) == [0, 0]
    first, second = weights(one), weights(two)
    assert first.keys() == second.keys()
    for path, tensors in first.items():
        for name, tensor in tensors.items():
            torch.testing.assert_close(second[path][name], tensor, rtol=1e-10, atol=1e-10)


def test_all_processes_have_the_same_weights(tmp_path: Path) -> None:
    """Bit for bit in fp32, with the statistics of BatchNorm, after each merge."""
    members = together(2, several.batch_norm, tmp_path / "run", f"{GP}.beta=0.4")
    assert codes(members) == [0, 0], members
    states = [torch.load(tmp_path / f"state-{rank}.pt", weights_only=True) for rank in (0, 1)]
    seeds = [state.pop("seeds").tolist() for state in states]
    assert len({*seeds[0], *seeds[1]}) == 2 * 2 * 6  # of dropout: own ones in both halves
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name
