"""A run with every tuning method: what decays, interrupt and resume, reading and loading it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from small import run_small, small
from tiny_models import METHOD_OPTIONS, tiny
from torch import Tensor

from roli_fast import models
from roli_fast.errors import ArgumentError, CheckpointError, ConfigError
from roli_fast.peft import METHODS, apply, merge
from roli_fast.train import loop
from roli_fast.train.checks import check
from roli_fast.train.cli import parse
from roli_fast.train.optim import parameter_groups

DECAYED = {
    "linear": (),
    "bias": (),
    "lora": ("lora_a", "lora_b"),
    "lnlora": ("lora_a", "lora_b"),
    "adapter": ("adapter.down.weight", "adapter.up.weight"),
    "prompt": (),
    "full": ("qkv.weight", "proj.weight", "fc1.weight", "fc2.weight", "reduction.weight"),
}
"""Ends of the names that decay, beside the head's weight."""

X = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
@pytest.mark.parametrize("key", METHODS.names())
def test_decay_reaches_exactly_the_matrices(key: str, name: str) -> None:
    model = tiny(name)
    names = apply(model, METHODS[key](**METHOD_OPTIONS.get(key, {})))
    groups = parameter_groups(model, names, weight_decay=0.1)
    found = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    decayed = {n for n in names if id(model.get_parameter(n)) in found}
    ends = (*DECAYED[key], f"{model.head_name}.weight")
    assert decayed == {n for n in names if n.endswith(ends)}
    assert sum(len(group["params"]) for group in groups) == len(names)


def test_a_file_of_an_unknown_method_is_told(tmp_path: Path) -> None:
    model, tree = tiny(), {"name": "adapter", "shrink": 3}
    apply(model, METHODS["adapter"](reduction=4))
    model.card["tuning"] = [tree]
    models.save_model(model, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"tuning methods of this version.*{tree}"):
        models.load(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--finetune.tuning=lora", "--finetune.tuning.rank=32"],
            r"`finetune\.tuning\.rank`: expected at most 16",
        ),
        (
            ["--source=digits", "--source.classes=0,1", "--pretrain.tuning=lora"]
            + ["--pretrain.tuning.rank=2"],
            r"`pretrain.tuning`: expected a method that adds no",
        ),
    ],
)
def test_a_method_that_cannot_apply_leaves_no_folder(
    tmp_path: Path, flags: list[str], message: str
) -> None:
    with pytest.raises((ArgumentError, ConfigError), match=message):
        run_small(tmp_path / "run", *flags)
    assert not (tmp_path / "run").exists()


def test_prompts_for_a_network_without_tokens() -> None:
    """Both mistakes of one command: an option that only a ViT has, then the method."""
    command = ["--data=digits", "--model.name=resnet18", "--finetune.tuning=prompt"]
    command += ["--data.max_per_class=12", "--data.image_size=32"]
    for flags, message in (
        (
            ["--model.options.img_size=32"],
            r"`model\.options`: .*timm's resnet18.*'img_size': 32.*leave img_size out",
        ),
        ([], r"`finetune\.tuning`: .*got prompt for resnet18,.*not of Swin V2.*use linear,"),
    ):
        with pytest.raises(ArgumentError, match=message):
            check(parse([*command, *flags]).experiment)


@pytest.mark.parametrize("key", ["lora", "prompt"])
def test_a_stage_begins_with_the_probes_function_and_its_file_is_what_it_ends_with(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What adds modules is no plain backbone until it is merged."""
    logits: dict[str, Tensor] = {}
    run = loop.StageLoop.run
    flags = ["--methods=roli", "--probe.epochs=1", "--finetune.epochs=1"]
    flags += [f"--finetune.tuning={key}", "--model.options.drop_path_rate=0.1"]
    flags += [f"--finetune.tuning.{name}={value}" for name, value in METHOD_OPTIONS[key].items()]

    def spy(self: loop.StageLoop) -> Any:
        with torch.no_grad():
            logits[f"{self.job.name} start"] = self.model.eval()(X)
        result = run(self)
        with torch.no_grad():
            logits[f"{self.job.name} end"] = self.model.eval()(X)
        return result

    monkeypatch.setattr(loop.StageLoop, "run", spy)
    run_small(tmp_path / "run", *flags)
    same = torch.equal(logits["finetune start"], logits["probe end"])
    assert same == METHODS[key].keeps_function
    best = tmp_path / "run/seed-0/roli/stage-2-finetune/best.safetensors"
    loaded = models.load(best)
    with torch.no_grad():
        assert torch.equal(loaded(X), logits["finetune end"])
    config = models.Model(**{**small().model.__dict__, "weights": str(best)})
    with pytest.raises(CheckpointError, match=rf"plain backbone.*{key}.*"):
        models.create(config, num_classes=3)
    if key == "lora":
        models.save_model(merge(loaded), tmp_path / "plain.safetensors")
        plain = {**config.__dict__, "weights": str(tmp_path / "plain.safetensors")}
        models.create(models.Model(**plain), num_classes=3)
