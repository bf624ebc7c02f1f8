"""The resume file: whole, safe, and bit for bit."""

from pathlib import Path

import pytest
import torch
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


def optimiser(kind: str, model: nn.Module) -> torch.optim.Optimizer:
    if kind == "sgd":
        return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)
    return torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        x = torch.randn(4, 1, 3, 3, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_training_goes_on_bit_for_bit(tmp_path: Path, kind: str) -> None:
    straight, first, second = net(), net(), net()
    train(straight, optimiser(kind, straight), range(6))
    before = optimiser(kind, first)
    train(first, before, range(3))
    tensors = changing_tensors(first, [name for name, _ in first.named_parameters()])
    progress = Progress(epoch=1, step=2, best_score=0.25, epoch_sums={"loss": 0.1 + 0.2})
    path = tmp_path / "resume.pt"
    save_resume(path, progress, {"model": tensors, "best": {}}, {"": before})

    saved, after = load_resume(path), optimiser(kind, second)
    assert saved.progress == progress and saved.tensors["best"] == {}
    restore_tensors(second, saved.tensors["model"])
    restore_optimizer(after, saved.optimizers[""])
    train(second, after, range(3, 6))
    for name, tensor in straight.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


def test_a_frozen_backbone_is_not_stored() -> None:
    statistics = {f"1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    assert set(changing_tensors(net(), ["3.weight", "3.bias"])) == statistics | {
        "3.weight",
        "3.bias",
    }


@pytest.mark.parametrize("damage", ["truncated", "empty", "other", "words"])
def test_a_damaged_file_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "resume.pt"
    save_resume(path, Progress(), {"model": {}}, {})
    content = path.read_bytes()
    path.write_bytes({"truncated": content[: len(content) // 2]}.get(damage, b"x" * 100))
    if damage == "empty":
        path.write_bytes(b"")
    if damage == "words":
        torch.save({"progress": {"epoch": 1, "stride": 2}}, path)
    with pytest.raises(CheckpointError, match=r"resume\.pt': .*Delete the stage's folder"):
        load_resume(path)
