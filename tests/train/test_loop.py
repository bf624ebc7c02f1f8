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

from roli_fast import models
from roli_fast.attacks import PGD, AttackResult
from roli_fast.attacks.base import AttackInputs
from roli_fast.errors import NonFiniteLossError
from roli_fast.evaluate import Evaluation
from roli_fast.seeds import derive_seed
from roli_fast.train import loop, pipeline
from roli_fast.train.checkpoint import copy_tensors
from roli_fast.train.objectives import Adversarial, Step

ONE = ["--methods=ranli", "--ranli.batch_size=24", "--ranli.optimizer.lr=0.01"]

SHARES = [0.0, 0.5, 1.0, 1.0]
"""Of the radius, in each epoch: none at first, then up over two epochs."""

WATCHED = [*ONE, "--ranli.epochs=4", "--ranli.warmup_epochs=2", "--ranli.attack.step_size=0.01"]
WATCHED += ["--ranli.eps_schedule={name: ramp, start: 1/4, end: 3/4}"]
WATCHED += ["--ranli.objective.label_smoothing=0.1", "--ranli.validate_every=3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("watched") / "run"


@pytest.fixture(scope="module")
def seen(folder: Path) -> list[dict[str, Any]]:
    """One entry an update: epoch, rate, ids, images before and after the attack, what the model was
    given, attack, and the generator's seed."""
    rows: list[dict[str, Any]] = []
    update, step, search = loop.StageLoop._update, Adversarial.__call__, PGD.search

    def watched(self: loop.StageLoop, epoch: int, batch: Any) -> Any:
        rows.append({"epoch": epoch, "ids": batch.ids.tolist(), "x": batch.x.clone(), "used": []})
        result = update(self, epoch, batch)
        rows[-1] |= {"lr": self.optimizer.param_groups[0]["lr"]}
        return result

    def objective(self: Adversarial, asked: Step) -> Any:
        rows[-1] |= {"attack": asked.attack, "objective": self, "training": asked.model.training}
        rows[-1] |= {"seed": asked.generator.initial_seed()}
        return step(self, asked)

    def searched(self: PGD, asked: AttackInputs) -> AttackResult:
        result = search(self, asked)
        if self.steps == 7 and len(asked.x) > 1:  # the training attack, and not its cost's estimate
            rows[-1]["x_adv"] = result.x_adv
        return result

    def forward(model: Any, arguments: tuple[torch.Tensor, ...]) -> None:
        if model.training:
            rows[-1]["used"].append(arguments[0])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.StageLoop, "_update", watched)
        patch.setattr(Adversarial, "__call__", objective)
        patch.setattr(PGD, "search", searched)
        before_stages(patch, lambda stage: stage.model.register_forward_pre_hook(forward))
        run_small(folder, *WATCHED)
    return rows


def test_the_rate_of_every_update(seen: list[dict[str, Any]]) -> None:
    """72 images, batch 24: 3 updates an epoch; 2 of 4 epochs warm up, then half a cosine."""
    rising = [0.01 * (i + 1) / 6 for i in range(6)]
    falling = [0.005 * (1 + math.cos(math.pi * i / 6)) for i in range(6)]
    assert [row["lr"] for row in seen] == pytest.approx(rising + falling)


def test_the_attack_follows_the_threat_and_the_schedule(
    seen: list[dict[str, Any]], folder: Path
) -> None:
    attacks = [PGD(eps=0.04 * s, step_size=0.01 * s, steps=7) if s else None for s in SHARES]
    assert [row["attack"] for row in seen] == [attack for attack in attacks for _ in range(3)]
    assert [row["train_eps"] for row in records(folder)] == [0.04 * share for share in SHARES]


def test_the_model_trains_on_attacked_images(seen: list[dict[str, Any]]) -> None:
    """The clean batch never reaches the update; what does is within eps of it, and not equal."""
    for row in seen:
        (used,) = row["used"]
        assert torch.equal(used, row.get("x_adv", row["x"]))
        moved, share = (row["x"] - used).abs().max(), SHARES[row["epoch"]]
        assert 0.03 * share <= moved <= 0.04 * share + 1e-7


def test_order_augmentation_and_seeds_change_every_epoch(seen: list[dict[str, Any]]) -> None:
    first, second = [sum((r["ids"] for r in seen if r["epoch"] == e), []) for e in (0, 1)]
    assert first != second and sorted(first) == sorted(second)
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


def scripted(scores: list[tuple[float, float]]) -> Iterator[Evaluation]:
    for clean, robust in scores:
        flags = [torch.arange(100) < 100 * share for share in (clean, robust)]
        yield Evaluation(flags[0], {"pgd-2": flags[1]})


@pytest.mark.parametrize("select", ["best", "last"])
def test_the_most_robust_epoch_is_kept_and_tested(
    select: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clean accuracy peaks elsewhere, and the best epoch is not the last; or the last is asked."""
    script = scripted([(0.9, 0.1), (0.5, 0.4), (0.8, 0.3)])
    attacks: list[Any] = []
    states: list[dict[str, torch.Tensor]] = []
    original = pipeline.evaluate

    def validate(model: Any, _batches: Any, used: Any, **_options: Any) -> Evaluation:
        attacks.extend(used.values())
        states.append(copy_tensors(model.backbone.state_dict()))
        return next(script)

    def test(model: Any, *arguments: Any, **options: Any) -> Evaluation:
        states.append(copy_tensors(model.backbone.state_dict()))
        return original(model, *arguments, **options)

    monkeypatch.setattr(loop, "evaluate", validate)
    monkeypatch.setattr(pipeline, "evaluate", test)
    run_small(tmp_path / "run", *ONE, "--ranli.epochs=3", f"--ranli.select={select}")
    assert attacks == [PGD(eps=0.04, step_size=None, steps=2)] * 3
    folder = tmp_path / "run/seed-0/ranli/stage-1-ranli"
    best, last = load_file(folder / "best.safetensors"), load_file(folder / "last.safetensors")
    _first, second, third, tested = states
    for name, tensor in (second if select == "best" else third).items():
        assert torch.equal(best[name], tensor), name
        assert torch.equal(tested[name], tensor), name
        assert torch.equal(last[name], third[name]), name
    result = json.loads((folder / "result.json").read_text())
    expected = {"best": (1, 0.4), "last": (2, 0.3)}[select]
    assert (result["best_epoch"], result["best_validation_accuracy"]) == expected


@pytest.mark.parametrize("more", [[], ["--ranli.gradient_projection={}"]], ids=["", "clean half"])
def test_nan_weights_reach_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str]
) -> None:
    """The loss before the fatal update is finite; the weights after it are not."""
    original = loop.StageLoop._update

    def poison(self: loop.StageLoop, epoch: int, batch: Any) -> Any:
        row = original(self, epoch, batch)
        if (epoch, self.progress.phase, self.progress.step) == (1, 0, 2):
            with torch.no_grad():
                self.model.head.weight.fill_(float("nan"))
        return row

    folder, flags = tmp_path / "run", [*ONE, *more, "--ranli.epochs=2", "--checkpoint_minutes=0"]
    with monkeypatch.context() as patch:
        patch.setattr(loop.StageLoop, "_update", poison)
        with pytest.raises(NonFiniteLossError, match=r"head\.weight is no longer finite.*h 1") as e:
            run_small(folder, *flags)
    assert "best weights so far" in str(e.value)  # of the first epoch
    models.load(folder / "seed-0/ranli/stage-1-ranli/best.safetensors")
    for tensors in weights(folder).values():
        assert all(torch.isfinite(tensor.float()).all() for tensor in tensors.values())
    run_small(folder, *flags)  # from the resume file


def test_a_crash_after_the_last_update_repeats_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = [*ONE, "--ranli.epochs=2", "--checkpoint_minutes=0"]

    def crash(*_arguments: Any) -> None:
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="power cut"):
        patch.setattr(loop, "save_head", crash)
        run_small(tmp_path / "run", *flags)
    monkeypatch.setattr(loop.StageLoop, "_update", crash)
    run_small(tmp_path / "run", *flags)


def test_scratch_ignores_the_weight_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = models.create(small().model, num_classes=3, seed=derive_seed(0, "init"))
    other = models.create(small().model, num_classes=3, seed=1)
    models.save_model(other, tmp_path / "other.safetensors")
    started: dict[str, torch.Tensor] = {}
    before_stages(
        monkeypatch, lambda s: started.update(copy_tensors(s.model.backbone.state_dict()))
    )
    flags = ["--methods=scratch", "--pretrain.epochs=1", "--pretrain.attack=null"]
    run_small(tmp_path / "run", *flags, f"--model.weights={tmp_path / 'other.safetensors'}")
    for name, tensor in fresh.backbone.state_dict().items():
        assert torch.equal(tensor, started[name]), name
