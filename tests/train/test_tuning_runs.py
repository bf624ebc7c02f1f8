"""A run with every tuning method: what decays, interrupt and resume, reading and loading it."""

import os
import signal
from pathlib import Path

import pytest
import torch
from small import assert_same_weights, run_small, small
from tiny_models import METHOD_OPTIONS, tiny
from torch import Tensor

from roli_fast import models
from roli_fast.errors import ArgumentError, CheckpointError, ConfigError, InterruptedRunError
from roli_fast.peft import METHODS, apply, merge
from roli_fast.train import loop
from roli_fast.train.checks import check
from roli_fast.train.cli import parse
from roli_fast.train.optim import parameter_groups

NETWORKS = ("vit_tiny_patch16_224", "swin_tiny_patch4_window7_224")

DECAYED = {
    "linear": (),
    "bias": (),
    "lora": ("lora_a", "lora_b"),
    "adapter": ("adapter.down.weight", "adapter.up.weight"),
    "prompt": (),
    "full": ("qkv.weight", "proj.weight", "fc1.weight", "fc2.weight", "reduction.weight"),
}
"""Ends of the names that decay, beside the head's weight."""

X = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def flags(key: str) -> list[str]:
    """Stage 2 with the method, dropout and DropPath included; stage 1 is shared."""
    options = METHOD_OPTIONS.get(key, {})
    return [
        "--methods=roli",
        "--probe.epochs=1",
        "--finetune.epochs=1",
        f"--finetune.tuning={key}",
        *(f"--finetune.tuning.{name}={value}" for name, value in options.items()),
        "--model.options.drop_path_rate=0.1",
    ]


@pytest.mark.parametrize("name", NETWORKS)
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


@pytest.mark.parametrize("key", ["lora", "prompt"])
def test_interrupt_resume_and_load(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits: dict[str, Tensor] = {}
    run, update = loop.StageLoop.run, loop.StageLoop._update

    def spy(self: loop.StageLoop):  # noqa: ANN202
        with torch.no_grad():
            logits[f"{self.job.name} start"] = self.model.eval()(X)
        result = run(self)
        with torch.no_grad():
            logits[f"{self.job.name} end"] = self.model.eval()(X)
        return result

    monkeypatch.setattr(loop.StageLoop, "run", spy)
    straight, folder = tmp_path / "straight", tmp_path / "run"
    run_small(straight, *flags(key))
    same = torch.equal(logits["finetune start"], logits["probe end"])
    assert same == METHODS[key].keeps_function
    loaded = models.load(straight / "seed-0/roli/stage-2-finetune/best.safetensors")
    with torch.no_grad():
        assert torch.equal(loaded(X), logits["finetune end"])

    def stop(self: loop.StageLoop, epoch: int, batch):  # noqa: ANN001, ANN202
        if self.job.name == "finetune" and self.progress.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(self, epoch, batch)

    monkeypatch.setattr(loop.StageLoop, "_update", stop)
    with pytest.raises(InterruptedRunError, match="SIGTERM"):
        run_small(folder, *flags(key))
    monkeypatch.undo()
    run_small(folder, *flags(key))
    assert_same_weights(straight, folder)


def test_a_lora_file_is_no_plain_backbone_until_it_is_merged(tmp_path: Path) -> None:
    run_small(tmp_path / "run", *flags("lora"))
    best = tmp_path / "run/seed-0/roli/stage-2-finetune/best.safetensors"
    config = models.Model(**{**small().model.__dict__, "weights": str(best)})
    with pytest.raises(CheckpointError, match=r"plain backbone.*lora.*peft\.merge"):
        models.create(config, num_classes=3)
    plain = merge(models.load(best))
    models.save_model(plain, tmp_path / "plain.safetensors")
    config = models.Model(**{**config.__dict__, "weights": str(tmp_path / "plain.safetensors")})
    models.create(config, num_classes=3)


def test_a_file_of_an_unknown_method_is_told(tmp_path: Path) -> None:
    model = tiny()
    apply(model, METHODS["adapter"](reduction=4))
    for tree in ({"name": "hypernet"}, {"name": "adapter", "shrink": 3}):
        model.card["tuning"] = [tree]
        models.save_model(model, tmp_path / "model.safetensors")
        with pytest.raises(CheckpointError, match=f"tuning methods of this version.*{tree}"):
            models.load(tmp_path / "model.safetensors")


def test_a_method_that_cannot_apply_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"`finetune\.tuning\.rank`: expected at most 16"):
        run_small(tmp_path / "run", "--finetune.tuning=lora", "--finetune.tuning.rank=32")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("network", ["resnet18"])
def test_prompts_for_a_network_without_tokens(network: str, tmp_path: Path) -> None:
    """Both mistakes of one command: an option that only a ViT has, then the method."""
    command = ["--data=digits", f"--model.name={network}", "--finetune.tuning=prompt"]
    command += ["--data.max_per_class=12", "--data.image_size=32"]
    size = "--model.options.img_size=32"
    for flags, message in (
        ([size], rf"`model\.options`: .*timm's {network}.*'img_size': 32.*leave img_size out"),
        ([], rf"`finetune\.tuning`: .*got prompt for {network},.*not of Swin V2.*use linear,"),
    ):
        with pytest.raises(ArgumentError, match=message):
            check(parse([*command, *flags]).experiment)


def test_pretraining_must_leave_a_plain_backbone(tmp_path: Path) -> None:
    source = ["--source=digits", "--source.classes=0,1,2", "--source.max_per_class=24"]
    with pytest.raises(ConfigError, match=r"`pretrain.tuning`: expected a method that adds no"):
        run_small(tmp_path / "run", *source, "--pretrain.tuning=lora", "--pretrain.tuning.rank=2")
