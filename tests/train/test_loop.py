"""What each update does: rate, attack, order, seeds, selection. Watched, and worked out by hand."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small import before_stages, records, run_small, small, weights

from roli_fast import models, ops
from roli_fast.attacks import PGD, AttackResult
from roli_fast.attacks.base import AttackInputs
from roli_fast.engine import Cost
from roli_fast.errors import NonFiniteLossError
from roli_fast.evaluate import Evaluation
from roli_fast.seeds import derive_seed
from roli_fast.train import loop, pipeline, run_directory
from roli_fast.train.checkpoint import copy_tensors
from roli_fast.train.objectives import Adversarial, Step

ONE = ["--methods=ranli", "--ranli.batch_size=24", "--ranli.optimizer.lr=0.01"]


WATCHED = [*ONE, "--ranli.epochs=4", "--ranli.warmup_epochs=2", "--ranli.clean_epochs=1"]
WATCHED += ["--ranli.objective.label_smoothing=0.1", "--ranli.validate_every=3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("watched") / "run"


@pytest.fixture(scope="module")
def seen(folder: Path) -> list[dict[str, Any]]:
    """One entry an update: epoch, rate, ids, images, attack, and the generator's seed."""
    rows: list[dict[str, Any]] = []
    update, step = loop.StageLoop._update, Adversarial.__call__

    def watched(self: loop.StageLoop, epoch: int, batch: Any) -> Any:
        rows.append({"epoch": epoch, "ids": batch.ids.tolist(), "x": batch.x.clone()})
        result = update(self, epoch, batch)
        rows[-1] |= {"lr": self.optimizer.param_groups[0]["lr"]}
        return result

    def objective(self: Adversarial, asked: Step) -> Any:
        rows[-1] |= {"attack": asked.attack, "objective": self, "training": asked.model.training}
        rows[-1] |= {"seed": asked.generator.initial_seed()}
        return step(self, asked)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.StageLoop, "_update", watched)
        patch.setattr(Adversarial, "__call__", objective)
        run_small(folder, *WATCHED)
    return rows


def test_the_rate_of_every_update(seen: list[dict[str, Any]]) -> None:
    """72 images, batch 24: 3 updates an epoch; 2 of 4 epochs warm up, then half a cosine."""
    rising = [0.01 * (i + 1) / 6 for i in range(6)]
    falling = [0.005 * (1 + math.cos(math.pi * i / 6)) for i in range(6)]
    assert [row["lr"] for row in seen] == pytest.approx(rising + falling)


def test_the_attack_follows_threat_and_clean_epochs(seen: list[dict[str, Any]]) -> None:
    attacks = [row["attack"] for row in seen]
    assert attacks == [None] * 3 + [PGD(eps=0.04, step_size=None, steps=7)] * 9


def test_order_augmentation_and_seeds_change_every_epoch(seen: list[dict[str, Any]]) -> None:
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


@pytest.mark.usefixtures("seen")
def test_validation_comes_when_it_is_due(folder: Path) -> None:
    validated = [r["epoch"] for r in records(folder) if "validation_clean_accuracy" in r]
    assert validated == [2, 3]


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

    create = run_directory.create
    monkeypatch.setattr(PGD, "search", watched)

    def hooked(*arguments: Any, **options: Any) -> Any:
        model = create(*arguments, **options)
        model.register_forward_pre_hook(forward)
        return model

    monkeypatch.setattr(run_directory, "create", hooked)
    run_small(tmp_path / "run", *ONE, "--ranli.epochs=1")
    assert len(inputs) == len(forwarded) == 3
    for (x, x_adv), used in zip(inputs, forwarded, strict=True):
        assert torch.equal(x_adv, used)
        assert 0.03 < (x - x_adv).abs().max() <= 0.04 + 1e-7


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
    with pytest.raises(
        NonFiniteLossError, match=r"head\.weight is no longer finite.*epoch 1"
    ) as told:
        run_small(folder, *ONE, "--ranli.epochs=3", "--checkpoint_minutes=0")
    assert "best weights so far" in str(told.value)  # of the first epoch
    models.load(folder / "seed-0/ranli/stage-1-ranli/best.safetensors")
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
    before_stages(
        monkeypatch, lambda s: started.update(copy_tensors(s.model.backbone.state_dict()))
    )
    flags = ["--methods=scratch", "--pretrain.epochs=1", f"--model.weights={file}"]
    run_small(tmp_path / "second", *flags)
    fresh = models.create(small().model, num_classes=3, seed=derive_seed(0, "init"))
    for name, tensor in fresh.backbone.state_dict().items():
        assert torch.equal(tensor, started[name]), name
