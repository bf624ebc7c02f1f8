"""What each update does: rate, attack, order, seeds, selection. Watched, and worked out by hand."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small import run_small, small, weights

from roli_fast import models, ops
from roli_fast.attacks import PGD, AttackResult
from roli_fast.attacks.base import AttackInputs
from roli_fast.engine import Cost
from roli_fast.errors import NonFiniteLossError
from roli_fast.evaluate import Evaluation
from roli_fast.seeds import derive_seed
from roli_fast.train import loop, pipeline, starting
from roli_fast.train.objectives import Adversarial

ONE = ["--methods=ranli", "--ranli.batch_size=24", "--ranli.optimizer.lr=0.01"]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """One entry an update: epoch, rates, momentum, ids, attack, and the generator's seed."""
    rows: list[dict[str, Any]] = []
    update, step = loop.StageLoop._update, Adversarial.__call__

    def watched(self: loop.StageLoop, epoch: int, batch: Any) -> Any:
        rows.append({"epoch": epoch, "ids": batch.ids.tolist(), "x": batch.x.clone()})
        result = update(self, epoch, batch)
        group = self.optimizer.param_groups[0]
        rows[-1] |= {"lr": group["lr"], "momentum": group.get("momentum")}
        return result

    def objective(
        self: Adversarial, model: Any, batch: Any, attack: Any, generator: Any, engine: Any
    ) -> Any:
        rows[-1] |= {"attack": attack, "seed": generator.initial_seed(), "objective": self}
        rows[-1] |= {"training": model.training}
        return step(self, model, batch, attack, generator, engine)

    monkeypatch.setattr(loop.StageLoop, "_update", watched)
    monkeypatch.setattr(Adversarial, "__call__", objective)
    return rows


def test_the_rate_of_every_update(seen: list[dict[str, Any]], tmp_path: Path) -> None:
    """72 images, batch 24: 3 updates an epoch; 2 of 4 epochs warm up, then half a cosine."""
    run_small(tmp_path / "run", *ONE, "--ranli.epochs=4", "--ranli.warmup_epochs=2")
    rising = [0.01 * (i + 1) / 6 for i in range(6)]
    falling = [0.005 * (1 + math.cos(math.pi * i / 6)) for i in range(6)]
    assert [row["lr"] for row in seen] == pytest.approx(rising + falling)


def test_the_attack_follows_threat_and_clean_epochs(
    seen: list[dict[str, Any]], tmp_path: Path
) -> None:
    run_small(tmp_path / "run", *ONE, "--ranli.epochs=3", "--ranli.clean_epochs=1")
    attacks = [row["attack"] for row in seen]
    expected = PGD(eps=0.04, step_size=None, steps=7)
    assert attacks == [None] * 3 + [expected] * 6


def test_the_model_trains_on_attacked_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clean batch never reaches the update; what does is within eps of it, and not equal."""
    inputs: list[tuple[torch.Tensor, torch.Tensor]] = []
    original = PGD.search

    def watched(self: PGD, asked: AttackInputs) -> AttackResult:
        result = original(self, asked)
        if self.steps == 7:  # the training attack
            inputs.append((asked.x, result.x_adv))
        return result

    forwarded: list[torch.Tensor] = []

    def forward(model: Any, arguments: tuple[torch.Tensor, ...]) -> None:
        if model.training:
            forwarded.append(arguments[0])

    create = starting.create
    monkeypatch.setattr(PGD, "search", watched)

    def hooked(*arguments: Any, **options: Any) -> Any:
        model = create(*arguments, **options)
        model.register_forward_pre_hook(forward)
        return model

    monkeypatch.setattr(starting, "create", hooked)
    run_small(tmp_path / "run", *ONE, "--ranli.epochs=1")
    assert len(inputs) == len(forwarded) == 3
    for (x, x_adv), used in zip(inputs, forwarded, strict=True):
        assert torch.equal(x_adv, used)
        assert 0.03 < (x - x_adv).abs().max() <= 0.04 + 1e-7


def test_order_augmentation_and_seeds_change_every_epoch(
    seen: list[dict[str, Any]], tmp_path: Path
) -> None:
    run_small(tmp_path / "run", *ONE, "--ranli.epochs=2", "--ranli.objective.label_smoothing=0.1")
    first, second = [sum((r["ids"] for r in seen if r["epoch"] == e), []) for e in (0, 1)]
    assert first != second
    assert sorted(first) == sorted(second)
    seeds = {row["epoch"]: {r["seed"] for r in seen if r["epoch"] == row["epoch"]} for row in seen}
    assert all(len(of_an_epoch) == 1 for of_an_epoch in seeds.values())
    assert seeds[0] != seeds[1]
    pictures = [torch.cat([r["x"] for r in seen if r["epoch"] == e]) for e in (0, 1)]
    place = torch.argsort(torch.tensor(first)), torch.argsort(torch.tensor(second))
    assert not torch.equal(pictures[0][place[0]], pictures[1][place[1]])
    assert all(row["objective"].label_smoothing == 0.1 and row["training"] for row in seen)


def test_an_image_is_attacked_from_the_same_start_in_any_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its draws depend on the seed, the epoch and its id: not on batch size or place."""
    starts: list[dict[int, torch.Tensor]] = []

    def start_only(self: PGD, asked: AttackInputs) -> AttackResult:
        noise = ops.linf_random_start(
            torch.full_like(asked.x, 0.5),
            eps=0.25,
            bounds=(0.0, 1.0),
            generator=asked.generator,
            sample_ids=asked.ids,
        )
        if self.steps == 7:  # the training attack
            starts[-1].update(zip(asked.ids.tolist(), noise, strict=True))
        return AttackResult(asked.x.clone(), Cost(0, 0))

    monkeypatch.setattr(PGD, "search", start_only)
    for size, epochs in ((24, 1), (9, 1), (9, 2)):
        starts.append({})
        flags = [f"--ranli.batch_size={size}", f"--ranli.epochs={epochs}"]
        run_small(tmp_path / f"{size}-{epochs}", "--methods=ranli", *flags)
    assert len(starts[0]) == 72 and starts[0].keys() == starts[1].keys() == starts[2].keys()
    assert all(torch.equal(starts[0][i], starts[1][i]) for i in starts[0])
    assert not any(torch.equal(starts[0][i], starts[2][i]) for i in starts[0])  # a later epoch's


def test_sgd_gets_its_momentum(seen: list[dict[str, Any]], tmp_path: Path) -> None:
    flags = ["--ranli.optimizer.name=sgd", "--ranli.optimizer.momentum=0.7", "--ranli.epochs=1"]
    run_small(tmp_path / "run", *ONE, *flags)
    assert {row["momentum"] for row in seen} == {0.7}


def scripted(scores: list[tuple[float, float]]) -> Iterator[Evaluation]:
    for clean, robust in scores:
        flags = [torch.arange(100) < 100 * share for share in (clean, robust)]
        yield Evaluation(flags[0], {"pgd-2": flags[1]})


def test_the_most_robust_epoch_is_kept_and_tested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clean accuracy peaks elsewhere, and the best epoch is not the last."""
    script = scripted([(0.9, 0.1), (0.5, 0.4), (0.8, 0.3)])
    attacks: list[Any] = []
    states: list[dict[str, torch.Tensor]] = []

    def validate(model: Any, _batches: Any, used: Any, **_options: Any) -> Evaluation:
        attacks.extend(used.values())
        states.append({n: t.clone() for n, t in model.backbone.state_dict().items()})
        return next(script)

    tested: list[dict[str, torch.Tensor]] = []
    original = pipeline.evaluate

    def test(model: Any, *arguments: Any, **options: Any) -> Evaluation:
        tested.append({n: t.clone() for n, t in model.backbone.state_dict().items()})
        return original(model, *arguments, **options)

    monkeypatch.setattr(loop, "evaluate", validate)
    monkeypatch.setattr(pipeline, "evaluate", test)
    run_small(tmp_path / "run", *ONE, "--ranli.epochs=3")
    assert attacks == [PGD(eps=0.04, step_size=None, steps=2)] * 3
    folder = tmp_path / "run/seed-0/ranli/stage-1-ranli"
    best, last = load_file(folder / "best.safetensors"), load_file(folder / "last.safetensors")
    for name, tensor in states[1].items():
        assert torch.equal(best[name], tensor), name
        assert torch.equal(tested[0][name], tensor), name
        assert torch.equal(last[name], states[2][name]), name
    result = json.loads((folder / "result.json").read_text())
    assert (result["best_epoch"], result["best_validation_accuracy"]) == (1, 0.4)


def test_validation_comes_when_it_is_due(tmp_path: Path) -> None:
    run_small(tmp_path / "run", *ONE, "--ranli.epochs=5", "--ranli.validate_every=2")
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    validated = [r["epoch"] for r in map(json.loads, lines) if "validation_clean_accuracy" in r]
    assert validated == [1, 3, 4]


def test_nan_weights_reach_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss before the fatal update is finite; the weights after it are not."""
    original = loop.StageLoop._update

    def poison(self: loop.StageLoop, epoch: int, batch: Any) -> Any:
        row = original(self, epoch, batch)
        if (epoch, self.progress.step) == (1, 2):
            with torch.no_grad():
                self.model.head.weight.fill_(float("nan"))
        return row

    folder = tmp_path / "run"
    monkeypatch.setattr(loop.StageLoop, "_update", poison)
    with pytest.raises(NonFiniteLossError, match=r"head\.weight is no longer finite.*epoch 1"):
        run_small(folder, *ONE, "--ranli.epochs=3", "--checkpoint_minutes=0")
    monkeypatch.undo()
    for tensors in weights(folder).values():
        assert all(torch.isfinite(tensor.float()).all() for tensor in tensors.values())
    run_small(folder, *ONE, "--ranli.epochs=3", "--checkpoint_minutes=0")


def test_a_crash_after_the_last_update_repeats_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    flags = [*ONE, "--ranli.epochs=2", "--checkpoint_minutes=0"]

    def crash(*_arguments: Any) -> None:
        raise RuntimeError("power cut")

    monkeypatch.setattr(loop, "save_head", crash)
    with pytest.raises(RuntimeError, match="power cut"):
        run_small(folder, *flags)
    monkeypatch.undo()
    updates: list[int] = []
    original = loop.StageLoop._update
    monkeypatch.setattr(
        loop.StageLoop,
        "_update",
        lambda self, epoch, batch: updates.append(epoch) or original(self, epoch, batch),
    )
    run_small(folder, *flags)
    assert updates == []


def test_scratch_ignores_the_weight_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_small(tmp_path / "first", *ONE, "--ranli.epochs=1")
    file = tmp_path / "first/seed-0/ranli/stage-1-ranli/best.safetensors"
    started: dict[str, torch.Tensor] = {}
    original = loop.StageLoop.run

    def spy(self: loop.StageLoop) -> Any:
        started.update({n: t.clone() for n, t in self.model.backbone.state_dict().items()})
        return original(self)

    monkeypatch.setattr(loop.StageLoop, "run", spy)
    flags = ["--methods=scratch", "--pretrain.epochs=1", f"--model.weights={file}"]
    run_small(tmp_path / "second", *flags)
    fresh = models.create(small().model, num_classes=3, seed=derive_seed(0, "init"))
    for name, tensor in fresh.backbone.state_dict().items():
        assert torch.equal(tensor, started[name]), name


def test_a_trained_model_is_loaded_whole(tmp_path: Path) -> None:
    summary = run_small(tmp_path / "run", *ONE, "--ranli.epochs=1", "--model.mean=0.1,0.2,0.3")
    model = models.load(tmp_path / "run/seed-0/ranli/stage-1-ranli/best.safetensors")
    test = small().data.load().test
    x, y, _ids = test.batch(torch.arange(len(test)))
    with torch.no_grad():
        right = (model(x).argmax(1) == y).double().mean().item()
    assert right == pytest.approx(summary["methods"]["ranli"]["test"]["clean_accuracy"])
    assert model.normalize.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert model.card["classes"] == ["5", "6", "7"]
