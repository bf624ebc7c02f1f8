"""Each fault of the release is there when it is asked for, and only then."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small import run_small, small
from tiny_models import images, tiny
from torch import nn

from roli_fast.attacks import PGD
from roli_fast.errors import ConfigError
from roli_fast.models import Classifier
from roli_fast.peft import Adapter, Bias, LoRA, Method
from roli_fast.threat import ThreatModel
from roli_fast.train import loop
from roli_fast.train.cli import help_text
from roli_fast.train.optim import Optimizer
from roli_fast.train.paper_compat import FAULTS, faulty_attack, faulty_stage
from roli_fast.train.stage import Stage

VIT, SWIN = "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"


def others(fault: str) -> tuple[str, ...]:
    """All faults but one: what a fault does must not come from another."""
    return tuple(name for name in FAULTS if name != fault)


def factors(*faults: str) -> list[float]:
    stage = faulty_stage("ranli", Stage(epochs=6, warmup_epochs=2), faults)
    return [stage.lr_factor(update, steps=2) for update in range(12)]


def test_zero_lr_epoch_by_hand() -> None:
    """Two updates an epoch: 0, 0, 1/2, 1/2, then 1, .854, .5, .146 of a cosine over 4 epochs."""
    by_epoch = [0, 0.5, 1, 0.8535534, 0.5, 0.1464466]
    expected = [rate for rate in by_epoch for _ in range(2)]
    assert factors("zero_lr_epoch") == pytest.approx(expected)
    ours = factors(*others("zero_lr_epoch"))
    assert ours == factors() and ours[0] > 0 and ours[0] != ours[1]


class Named(nn.Module):
    """A matrix, its bias, a norm, and a table with "bias" in its name."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.norm = nn.LayerNorm(2)
        self.position_bias_table = nn.Parameter(torch.ones(3, 2))


def built(optimizer: Optimizer, faults: Sequence[str]) -> tuple[torch.optim.Optimizer, Any]:
    """The optimiser, and the weight decay of each parameter."""
    model = Named()
    stage = faulty_stage("ranli", Stage(optimizer=optimizer), faults)
    optimizer_ = stage.optimizer.build(model, [name for name, _ in model.named_parameters()])
    names = {id(p): name for name, p in model.named_parameters()}
    decay = {names[id(p)]: g["weight_decay"] for g in optimizer_.param_groups for p in g["params"]}
    return optimizer_, decay


def test_fixed_decay() -> None:
    wanted = Optimizer(lr=0.1, weight_decay=0.3, eps=1e-6)
    optimizer, decay = built(wanted, ["fixed_decay"])
    assert isinstance(optimizer, torch.optim.AdamW)
    assert decay == {
        "linear.weight": 0.01,
        "linear.bias": 0.0,
        "norm.weight": 0.01,
        "norm.bias": 0.0,
        "position_bias_table": 0.0,
    }
    assert {(g["lr"], g["eps"]) for g in optimizer.param_groups} == {(0.1, 1e-6)}
    for faults in ((), others("fixed_decay")):
        decay = built(wanted, faults)[1]
        assert decay["linear.weight"] == 0.3 and decay["norm.weight"] == 0
    sgd = Optimizer(name="sgd", weight_decay=0.3)
    assert built(sgd, ["fixed_decay"])[1]["linear.weight"] == 0.3


def test_zero_decay_is_sgd() -> None:
    wanted = Optimizer(lr=0.1, weight_decay=0.0, momentum=0.2)
    optimizer, decay = built(wanted, ["zero_decay_is_sgd"])
    assert isinstance(optimizer, torch.optim.SGD)
    assert {(g["lr"], g["momentum"]) for g in optimizer.param_groups} == {(0.1, 0.9)}
    assert set(decay.values()) == {0.0}
    for faults in ((), others("zero_decay_is_sgd")):
        optimizer, decay = built(wanted, faults)
        assert isinstance(optimizer, torch.optim.AdamW) and set(decay.values()) == {0.0}
    some = Optimizer(weight_decay=0.1)
    assert isinstance(built(some, ["zero_decay_is_sgd"])[0], torch.optim.AdamW)


def rates(optimizer: torch.optim.Optimizer) -> list[float]:
    """The rate of every group in an update whose schedule asks for a hundredth."""
    for group in optimizer.param_groups:
        group["lr"] = 0.05 / 100
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return [group["lr"] for group in optimizer.param_groups]


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_unscheduled_bias(name: Any) -> None:
    """Only the matrices follow the schedule; a gradient of 1 moves a bias by 1 in SGD."""
    wanted = Optimizer(name, lr=0.05, weight_decay=5e-4)
    optimizer, decay = built(wanted, ["unscheduled_bias"])
    bias = optimizer.param_groups[1]["params"][0]
    before = bias.detach().clone()
    assert rates(optimizer) == [0.0005, 1.0] == rates(optimizer)
    if name == "sgd":  # 1, then 1 + 0.9 of momentum
        torch.testing.assert_close(before - bias, torch.full_like(bias, 2.9))
    assert decay["linear.weight"] == 5e-4 and decay["linear.bias"] == 0
    for faults in ((), tuple(FAULTS)):
        assert rates(built(wanted, faults)[0]) == [0.0005, 0.0005]


class Trap(nn.Module):
    """Two classes, one pixel: logits (f(x), 0). A sample's own loss rises or falls as it moves."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pixel = x.flatten(1)
        return torch.cat([torch.cos(9 * pixel), 0 * pixel], 1)


def losses(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(model(x), y, reduction="none")


def test_batch_best() -> None:
    """Every iterate is recorded. The release's is the batch of highest mean; ours, row by row."""
    model, y = Trap(), torch.zeros(6, dtype=torch.int64)
    x = torch.linspace(0.05, 0.95, 6).view(6, 1, 1, 1)
    attack = PGD(norm=None, eps=0.4, step_size=0.35, steps=5, random_start=False, bounds=None)
    iterates = [x]
    for steps in range(1, 6):
        last = PGD(eps=0.4, step_size=0.35, steps=steps, random_start=False, keep="last")
        iterates.append(last(model, x, y))
    table = torch.stack([losses(model, x_adv, y) for x_adv in iterates])
    whole = faulty_attack(attack, ["batch_best"]).under(ThreatModel())
    assert whole.label == "pgd-5"
    best = int(table.mean(1).argmax())
    assert torch.equal(whole(model, x, y), iterates[best])
    own = PGD(eps=0.4, step_size=0.35, steps=5, random_start=False, keep="best")(model, x, y)
    torch.testing.assert_close(losses(model, own, y), table.amax(0))
    assert not torch.equal(own, iterates[best]) and best != 5, "the case tells them apart"
    for faults in ((), others("batch_best")):
        assert faulty_attack(attack, faults) is attack


def trained(method: Method, faults: Sequence[str], name: str) -> tuple[dict[str, bool], Classifier]:
    """Which trainable tensors move in three steps of a stage on a small ViT."""
    model = tiny(VIT)
    stage = faulty_stage(name, Stage(tuning=method), faults)
    names = stage.prepare(model, seed=0)
    parameters = dict(model.named_parameters())
    before = {n: parameters[n].detach().clone() for n in names}
    optimizer = torch.optim.SGD([parameters[n] for n in names], lr=0.1)
    x, y = images(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    for _ in range(3):
        stage.tuning.train_mode(model)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return {n: not torch.equal(before[n], parameters[n]) for n in names}, model


def test_dead_lora() -> None:
    """All of LoRA stays where it was, and the head alone learns; RanLI's LoRA lives."""
    method = LoRA(rank=2)
    moved, model = trained(method, ["dead_lora"], "finetune")
    assert {n for n, m in moved.items() if m} == {"backbone.head.weight", "backbone.head.bias"}
    assert all(not p.any() for n, p in model.named_parameters() if "lora" in n)
    for faults, stage in (
        ((), "finetune"),
        (others("dead_lora"), "finetune"),
        (["dead_lora"], "ranli"),
    ):
        assert all(trained(method, faults, stage)[0].values()), (faults, stage)


@pytest.mark.parametrize("stage", ["finetune", "ranli"])
def test_dead_adapter(stage: str) -> None:
    """Of an adapter only up.bias ever moves."""
    method = Adapter(reduction=4)
    moved, _ = trained(method, ["dead_adapter"], stage)
    live = {n for n, m in moved.items() if m and "adapter" in n}
    assert live == {f"backbone.blocks.{i}.mlp.adapter.up.bias" for i in range(2)}
    for faults in ((), others("dead_adapter")):
        assert all(trained(method, faults, stage)[0].values())


def test_inert_dropout_bias_tables_and_wide_head() -> None:
    """Each is a field of the tuning or of the run, and no other fault sets it."""

    def found(faults: Sequence[str]) -> tuple[Method, Method, str]:
        tunings = [
            faulty_stage("ranli", Stage(tuning=one), faults).tuning
            for one in (LoRA(dropout=0.3), Bias())
        ]
        return *tunings, small(f"--paper_compat={','.join(faults) or '[]'}").fresh_head

    plain = (LoRA(dropout=0.3), Bias(), "default")
    changed = (LoRA(dropout=0.0), Bias(tables=True), "kaiming")
    for place, fault in enumerate(("inert_dropout", "bias_tables", "wide_head")):
        assert found([fault]) == (*plain[:place], changed[place], *plain[place + 1 :])
        assert found(others(fault))[place] == plain[place] == found([])[place]


def test_the_names_are_checked_and_all_is_all() -> None:
    assert small("--paper_compat", "all").paper_compat == tuple(FAULTS)
    given = small("--paper_compat=batch_best,zero_lr_epoch").paper_compat
    assert given == ("zero_lr_epoch", "batch_best"), "one order, whatever was written"
    for wrong in ("dead_loras", "all,wide_head", "wide_head,wide_head"):
        with pytest.raises(ConfigError, match=r"`paper_compat`: expected 'all'.*dead_adapter.*got"):
            small(f"--paper_compat={wrong}")
    words = " ".join(help_text("all").split())
    assert all(f"{name} {text}" in words for name, text in FAULTS.items())


def test_a_run_with_every_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first epoch leaves every weight where it was; attacks and heads are the release's."""
    heads: dict[str, float] = {}
    attacks: set[tuple[str, int]] = set()
    original, search = loop.StageLoop.run, PGD.search

    def spy(self: loop.StageLoop) -> Any:
        heads[self.job.name] = self.model.head.weight.std().item()
        return original(self)

    def watched(self: PGD, *arguments: Any, **options: Any) -> Any:
        attacks.add((self.keep, self.steps))
        return search(self, *arguments, **options)

    monkeypatch.setattr(loop.StageLoop, "run", spy)
    monkeypatch.setattr(PGD, "search", watched)
    flags = ["--paper_compat=all", "--probe.epochs=1", "--finetune.epochs=2"]
    flags += ["--finetune.tuning=lora", "--finetune.tuning.rank=2"]
    summary = run_small(tmp_path / "run", *flags)
    assert heads["ranli"] == pytest.approx((2 / 3) ** 0.5, rel=0.3)
    assert attacks == {("best_batch", 2), ("best_batch", 3)}
    assert summary["paper_compat"] == list(FAULTS)
    rates = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [r["lr"] > 0 for r in rates] == [False, False, True, False, True, True]
    probed = load_file(tmp_path / "run/seed-0/roli/stage-1-probe/last.safetensors")
    assert probed["head.weight"].std().item() == pytest.approx(heads["probe"])
    tuned = load_file(tmp_path / "run/seed-0/roli/stage-2-finetune/last.safetensors")
    assert all(not t.any() for n, t in tuned.items() if "lora" in n)
    assert not torch.equal(tuned["head.weight"], probed["head.weight"])
