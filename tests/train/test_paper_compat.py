"""Each fault of the release is an option, set when it is asked for, and only then."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small import before_stages, records, run_small, small
from tiny_models import images, tiny
from torch import nn

from roli_fast.attacks import PGD
from roli_fast.errors import ConfigError
from roli_fast.peft import Adapter, Bias, LoRA, Method
from roli_fast.train import loop
from roli_fast.train.cli import help_text
from roli_fast.train.optim import Cosine, Optimizer
from roli_fast.train.paper_compat import FAULTS, faulty_stage
from roli_fast.train.stage import Stage

VIT = "vit_tiny_patch16_224"


BEFORE_AFTER: dict[str, tuple[dict[str, Any], Any]] = {
    "zero_lr_epoch": ({"schedule": Cosine()}, Cosine(each="epoch")),
    "fixed_decay": (
        {"optimizer": Optimizer(weight_decay=0.3)},
        Optimizer(weight_decay=0.3, decay="release"),
    ),
    "zero_decay_is_sgd": (
        {"optimizer": Optimizer(weight_decay=0.0, momentum=0.2)},
        Optimizer("sgd", weight_decay=0.0, momentum=0.9),
    ),
    "batch_best": ({"attack": PGD()}, PGD(keep="best_batch")),
    "dead_lora": ({"zeroed": (), "tuning": LoRA()}, ("lora_a",)),
    "dead_adapter": ({"zeroed": (), "tuning": Adapter()}, (".adapter.",)),
    "inert_dropout": ({"tuning": LoRA(dropout=0.3)}, LoRA(dropout=0.0)),
    "bias_tables": ({"tuning": Bias()}, Bias(tables=True)),
    "unscheduled_bias": ({"optimizer": Optimizer()}, Optimizer(scheduled="decayed")),
}
"""Fault -> a stage's fields, and what the fault makes of the first of them."""


@pytest.mark.parametrize("fault", BEFORE_AFTER)
def test_a_fault_is_an_option_which_no_other_sets(fault: str) -> None:
    fields, after = BEFORE_AFTER[fault]
    stage, name = Stage(**fields), next(iter(fields))
    assert faulty_stage("finetune", stage, [fault]) == replace(stage, **{name: after})
    others = [one for one in FAULTS if one not in (fault, "fixed_decay")]
    assert getattr(faulty_stage("finetune", stage, others), name) == fields[name]
    assert faulty_stage("finetune", stage, []) == stage
    # SGD decays as it is told; LoRA dies after a probe alone
    sgd = Stage(optimizer=Optimizer("sgd", weight_decay=0.3), tuning=LoRA())
    assert faulty_stage("ranli", sgd, ["fixed_decay", "zero_decay_is_sgd", "dead_lora"]) == sgd


class Trap(nn.Module):
    """Two classes, one pixel: logits (f(x), 0). A sample's own loss rises or falls as it moves."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pixel = x.flatten(1)
        return torch.cat([torch.cos(9 * pixel), 0 * pixel], 1)


def losses(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(model(x), y, reduction="none")


def test_the_best_batch() -> None:
    """Every iterate is recorded. The release's is the batch of highest mean; ours, row by row."""
    model, y = Trap(), torch.zeros(6, dtype=torch.int64)
    x = torch.linspace(0.05, 0.95, 6).view(6, 1, 1, 1)
    attack = PGD(eps=0.4, step_size=0.35, steps=5, random_start=False)
    iterates = [x, *(replace(attack, steps=steps)(model, x, y) for steps in range(1, 6))]
    table = torch.stack([losses(model, x_adv, y) for x_adv in iterates])
    whole = replace(attack, keep="best_batch")
    best = int(table.mean(1).argmax())
    assert whole.label == "pgd-5" and torch.equal(whole(model, x, y), iterates[best])
    own = replace(attack, keep="best")(model, x, y)
    torch.testing.assert_close(losses(model, own, y), table.amax(0))
    assert not torch.equal(own, iterates[best]) and best != 5, "the case tells them apart"


@pytest.mark.parametrize(
    ("method", "zeroed", "live"),
    [
        (LoRA(rank=2), "lora_a", set()),
        (Adapter(reduction=4), ".adapter.", {f"blocks.{i}.mlp.adapter.up.bias" for i in range(2)}),
    ],
)
def test_what_begins_at_zero_stays_there(method: Method, zeroed: str, live: set[str]) -> None:
    """Of LoRA nothing ever moves, of an adapter its last bias; the head learns. Else all does."""
    for words in ((zeroed,), ()):
        model, stage = tiny(VIT), Stage(tuning=method, zeroed=words)
        parameters = {n: model.get_parameter(n) for n in stage.prepare(model, seed=0)}
        before = {n: p.detach().clone() for n, p in parameters.items()}
        optimizer = torch.optim.SGD(parameters.values(), lr=0.1)
        x, y = images(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
        for _ in range(3):
            stage.tuning.train_mode(model)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        moved = {n for n, p in parameters.items() if not torch.equal(before[n], p)}
        wanted = {f"backbone.{n}" for n in (*live, "head.weight", "head.bias")}
        assert moved == (wanted if words else set(parameters))


def test_the_names_are_checked_and_all_is_all() -> None:
    assert small("--paper_compat=wide_head").fresh_head == "kaiming"
    assert small("--paper_compat=dead_lora").fresh_head == small().fresh_head == "default"
    assert small("--paper_compat", "all").paper_compat == tuple(FAULTS)
    given = small("--paper_compat=batch_best,zero_lr_epoch").paper_compat
    assert given == ("zero_lr_epoch", "batch_best"), "one order, whatever was written"
    with pytest.raises(ConfigError, match=r"`paper_compat`: expected 'all'.*dead_adapter.*got"):
        small("--paper_compat=dead_loras")
    words = " ".join(help_text("all").split())
    assert all(f"{name} {text}" in words for name, text in FAULTS.items())


def test_a_run_with_every_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first epoch leaves every weight where it was; attacks and heads are the release's."""
    heads: dict[str, float] = {}
    attacks: set[tuple[str, int]] = set()
    search = PGD.search

    def look(stage: loop.StageLoop) -> None:
        heads[stage.job.name] = stage.model.head.weight.std().item()

    def watched(self: PGD, *arguments: Any, **options: Any) -> Any:
        attacks.add((self.keep, self.steps))
        return search(self, *arguments, **options)

    before_stages(monkeypatch, look)
    monkeypatch.setattr(PGD, "search", watched)
    flags = ["--paper_compat=all", "--probe.epochs=1", "--finetune.epochs=2"]
    flags += ["--finetune.tuning=lora", "--finetune.tuning.rank=2"]
    summary = run_small(tmp_path / "run", *flags)
    assert heads["ranli"] == pytest.approx((2 / 3) ** 0.5, rel=0.3)
    assert attacks == {("best_batch", 2), ("best_batch", 3)}
    assert summary["paper_compat"] == list(FAULTS)
    rates = [row["lr"] > 0 for row in records(tmp_path / "run")]
    assert rates == [False, False, True, False, True, True]
    probed = load_file(tmp_path / "run/seed-0/roli/stage-1-probe/last.safetensors")
    assert probed["head.weight"].std().item() == pytest.approx(heads["probe"])
    tuned = load_file(tmp_path / "run/seed-0/roli/stage-2-finetune/last.safetensors")
    assert all(not t.any() for n, t in tuned.items() if "lora" in n)
    assert not torch.equal(tuned["head.weight"], probed["head.weight"])
