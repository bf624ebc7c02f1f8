"""The resume file: whole, safe, and bit for bit."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from roli_fast.errors import CheckpointError
from roli_fast.train.checkpoint import (
    Progress,
    changing_tensors,
    load_resume,
    restore_optimizer,
    restore_tensors,
    save_resume,
)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2))


def optimiser(kind: str, model: nn.Module, *, fused: bool = True) -> torch.optim.Optimizer:
    if kind == "sgd":
        return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=fused)
    return torch.optim.AdamW(model.parameters(), lr=0.1, fused=fused)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        x = torch.randn(4, 1, 3, 3, generator=torch.Generator().manual_seed(step))
        loss = model(x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_training_goes_on_bit_for_bit(tmp_path: Path, kind: str) -> None:
    straight = net()
    train(straight, optimiser(kind, straight), range(6))

    first = net()
    before = optimiser(kind, first)
    train(first, before, range(3))
    names = [name for name, _ in first.named_parameters()]
    tensors = changing_tensors(first, names)
    progress = Progress(epoch=1, step=2, best_score=0.25, epoch_sums={"loss": 0.1 + 0.2})
    path = tmp_path / "resume.safetensors"
    save_resume(path, {"model": tensors, "best": tensors}, {"": before}, progress)

    saved = load_resume(path)
    second = net()
    after = optimiser(kind, second)
    restore_tensors(second, saved.tensors["model"], path)
    restore_optimizer(after, saved.optimizers[""])
    train(second, after, range(3, 6))
    assert saved.progress == progress
    for name, tensor in straight.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


def test_a_frozen_backbone_is_not_stored() -> None:
    names = changing_tensors(net(), ["3.weight", "3.bias"])
    assert set(names) == {
        "1.running_mean",
        "1.running_var",
        "1.num_batches_tracked",
        "3.weight",
        "3.bias",
    }


@pytest.mark.parametrize("damage", ["truncated", "empty", "other"])
def test_a_damaged_file_is_named(tmp_path: Path, damage: str) -> None:
    model = net()
    path = tmp_path / "resume.safetensors"
    tensors = changing_tensors(model, ["3.bias"])
    save_resume(path, {"model": tensors}, {"": optimiser("sgd", model)}, Progress())
    content = path.read_bytes()
    new = {"truncated": content[: len(content) // 2], "empty": b"", "other": b"x" * 100}[damage]
    path.write_bytes(new)
    with pytest.raises(CheckpointError, match="resume.safetensors"):
        load_resume(path)


def test_damaged_words_of_a_file_are_named(tmp_path: Path) -> None:
    path = tmp_path / "resume.safetensors"
    save_file({"model.a": torch.zeros(1)}, path, {"roli_fast_resume": '{"epoch": "x"}'})
    with pytest.raises(CheckpointError, match=r"resume\.safetensors': .*Delete the stage's folder"):
        load_resume(path)


def test_a_file_of_another_model_is_refused_before_anything_changes(tmp_path: Path) -> None:
    model = net()
    with pytest.raises(CheckpointError, match="3.bias"):
        restore_tensors(model, {"0.bias": torch.ones(3), "3.bias": torch.ones(5)}, tmp_path)
    assert not torch.equal(model[0].bias, torch.ones(3))
