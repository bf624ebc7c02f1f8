"""The resume file: whole, safe, and bit for bit."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from roli_fast.errors import CheckpointError
from roli_fast.train.checkpoint import (
    Progress,
    changing_tensors,
    copy_tensors,
    load_resume,
    restore_optimizer,
    restore_tensors,
    save_resume,
)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2))


def smooth_net() -> nn.Sequential:
    """Every tensor has a gradient well above rounding: a bias before BN has none, and Adam divides
    by it."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(9, 5), nn.Tanh(), nn.Linear(5, 2))


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
    save_resume(path, model=tensors, best=tensors, optimizer=before, progress=progress)

    saved = load_resume(path)
    second = net()
    after = optimiser(kind, second)
    restore_tensors(second, saved.model, path)
    restore_optimizer(after, saved.optimizer)
    train(second, after, range(3, 6))
    assert saved.progress == progress
    for name, tensor in straight.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize("was_fused", [False, True])
def test_fused_kernels_take_over_and_hand_over(tmp_path: Path, kind: str, was_fused: bool) -> None:
    """A run that was begun without them goes on with them, to rounding, and the other way round."""
    straight = smooth_net()
    train(straight, optimiser(kind, straight, fused=not was_fused), range(6))
    first = smooth_net()
    before = optimiser(kind, first, fused=was_fused)
    train(first, before, range(3))
    tensors = changing_tensors(first, [name for name, _ in first.named_parameters()])
    path = tmp_path / "resume.safetensors"
    save_resume(path, model=tensors, best={}, optimizer=before, progress=Progress())
    saved = load_resume(path)
    second = smooth_net()
    after = optimiser(kind, second, fused=not was_fused)
    restore_tensors(second, saved.model, path)
    restore_optimizer(after, saved.optimizer)
    train(second, after, range(3, 6))
    for name, tensor in straight.state_dict().items():
        torch.testing.assert_close(second.state_dict()[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_further_tensors_and_optimisers_come_back(tmp_path: Path, kind: str) -> None:
    """Each under its name, with dots in the names of tensors and none mixed up."""
    model = smooth_net()
    own, other = optimiser(kind, model), optimiser(kind, model)
    train(model, own, range(2))
    train(model, other, range(3))
    kept = {"start": {"1.weight": torch.ones(5, 9)}, "natural": {"1.weight": torch.zeros(5, 9)}}
    path = tmp_path / "resume.safetensors"
    save_resume(
        path,
        model={},
        best={},
        optimizer=own,
        progress=Progress(phase=1, counts=[1.0, 2.0**53], accuracies={"l2": 0.1 + 0.2}),
        kept=kept,
        others={"natural": other},
    )
    saved = load_resume(path)
    assert saved.progress == Progress(phase=1, counts=[1.0, 2.0**53], accuracies={"l2": 0.1 + 0.2})
    assert saved.model == saved.best == {} and saved.kept.keys() == kept.keys()
    for name, tensors in kept.items():
        assert torch.equal(saved.kept[name]["1.weight"], tensors["1.weight"])
    assert list(saved.others) == ["natural"]
    for optimizer, state in ((own, saved.optimizer), (other, saved.others["natural"])):
        slots = optimizer.state_dict()["state"]
        assert slots.keys() == state.keys() and len(slots) == 4
        for index, values in slots.items():
            for slot, value in values.items():
                assert torch.equal(torch.as_tensor(value), torch.as_tensor(state[index][slot]))


def test_a_file_from_before_there_were_phases_is_read(tmp_path: Path) -> None:
    model = net()
    path = tmp_path / "resume.safetensors"
    tensors = changing_tensors(model, ["3.bias"])
    sgd = optimiser("sgd", model)
    save_resume(path, model=tensors, best={}, optimizer=sgd, progress=Progress(epoch=3, step=2))
    with safe_open(path, "pt") as file:
        meta = json.loads(file.metadata()["roli_fast_resume"])
    for name in ("phase", "counts", "accuracies"):
        del meta["progress"][name]
    found = load_file(path)
    save_file(found, path, {"roli_fast_resume": json.dumps(meta)})
    saved = load_resume(path)
    assert saved.progress == Progress(epoch=3, step=2) and saved.model.keys() == tensors.keys()
    assert saved.kept == saved.others == {}


def test_a_frozen_backbone_is_not_stored() -> None:
    names = changing_tensors(net(), ["3.weight", "3.bias"])
    assert set(names) == {
        "1.running_mean",
        "1.running_var",
        "1.num_batches_tracked",
        "3.weight",
        "3.bias",
    }


def test_copies_do_not_follow_the_model() -> None:
    model = net()
    copies = copy_tensors(changing_tensors(model, ["3.bias"]))
    before = copies["3.bias"].clone()
    with torch.no_grad():
        model[3].bias.add_(1)
    assert torch.equal(copies["3.bias"], before)


@pytest.mark.parametrize("damage", ["truncated", "empty", "other"])
def test_a_damaged_file_is_named(tmp_path: Path, damage: str) -> None:
    model = net()
    path = tmp_path / "resume.safetensors"
    tensors = changing_tensors(model, ["3.bias"])
    save_resume(
        path, model=tensors, best={}, optimizer=optimiser("sgd", model), progress=Progress()
    )
    content = path.read_bytes()
    new = {"truncated": content[: len(content) // 2], "empty": b"", "other": b"x" * 100}[damage]
    path.write_bytes(new)
    with pytest.raises(CheckpointError, match="resume.safetensors"):
        load_resume(path)


@pytest.mark.parametrize(
    "meta",
    ["3", "[" * 100_000, '{"progress": 3}', '{"progress": {"epoch": "x"}}', '{"progress": {}}']
    + ['{"progress": {}, "optimizer": {"x": {}}}', '{"progress": {}, "optimizer": 5}'],
)
def test_damaged_words_of_a_file_are_named(tmp_path: Path, meta: str) -> None:
    path = tmp_path / "resume.safetensors"
    save_file({"model.a": torch.zeros(1)}, path, {"roli_fast_resume": meta})
    with pytest.raises(CheckpointError, match=r"resume\.safetensors': .*Delete the stage's folder"):
        load_resume(path)


def test_a_file_of_another_model_is_refused_before_anything_changes(tmp_path: Path) -> None:
    model = net()
    with pytest.raises(CheckpointError, match="3.bias"):
        restore_tensors(model, {"0.bias": torch.ones(3), "3.bias": torch.ones(5)}, tmp_path)
    assert not torch.equal(model[0].bias, torch.ones(3))
