"""torchattacks' interface: targets, normalisation, modes and types of what comes back."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import FixedLogits, Mixed, images, picture, same, untouched
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchattacks_cases import AIMING, NOT_AIMING, X, Y, build, predicted, with_generator

import roli_fast.compat.torchattacks as torchattacks
from roli_fast.engine import Engine
from roli_fast.errors import ArgumentError

pytestmark = pytest.mark.usefixtures("short_autoattack")


@pytest.mark.parametrize("name", AIMING)
def test_targets(name: str) -> None:
    """Logits are pixels, so the step raises the target's pixel and no other."""
    model = FixedLogits(torch.eye(4))
    x = torch.full((6, 4), 0.5)
    y = torch.tensor([0, 1, 2, 3, 0, 1])
    aim: Callable[[Tensor, Tensor], Tensor] = lambda _, labels: (labels + 1) % 4  # noqa: E731
    attack = with_generator(build(name, model))
    attack.set_mode_targeted_by_function(aim, quiet=True)
    assert attack.get_mode() == "targeted(custom)" and attack.targeted
    goal = aim(x, y)
    moved = attack(x, y) - x
    assert torch.equal(moved.argmax(1), goal)
    attack.set_mode_targeted_by_label(quiet=True)
    assert torch.equal((attack(x, goal) - x).argmax(1), goal)
    attack.set_mode_default()
    assert attack.get_mode() == "default"
    assert torch.equal((attack(x, y) - x).argmin(1), y)


def test_a_target_that_is_the_label_strengthens_it() -> None:
    model = FixedLogits(torch.eye(4))
    x, y = torch.full((2, 4), 0.5), torch.tensor([0, 3])
    attack = torchattacks.FGSM(model, eps=0.1)
    attack.set_mode_targeted_by_function(lambda _, labels: torch.zeros_like(labels))
    assert (attack(x, y) - x).argmax(1).tolist() == [0, 0]


@pytest.mark.parametrize(("kth", "targets"), [(1, [3, 2]), (2, [2, 1]), (3, [0, 0])])
def test_the_kth_least_likely_class(kth: int, targets: list[int]) -> None:
    model = FixedLogits(torch.eye(4))
    x = torch.tensor([[0.6, 0.7, 0.4, 0.3], [0.6, 0.5, 0.4, 0.7]])
    y = torch.tensor([1, 3])
    attack = torchattacks.FGSM(model, eps=0.1)
    attack.set_mode_targeted_least_likely(kth)
    assert (attack(x, y) - x).argmax(1).tolist() == targets
    attack.set_mode_targeted_least_likely(4)
    with pytest.raises(ArgumentError, match="`kth_min`: expected at most 3"):
        attack(x, y)
    with pytest.raises(ArgumentError, match="`kth_min`: expected an integer >= 1"):
        attack.set_mode_targeted_least_likely(0)


def test_random_targets_are_wrong_classes_and_all_of_them() -> None:
    model = FixedLogits(torch.eye(4))
    x, y = torch.full((60, 4), 0.5), torch.full((60,), 2)
    attack = with_generator(torchattacks.FGSM(model, eps=0.1))
    attack.set_mode_targeted_random(quiet=True)
    assert set((attack(x, y) - x).argmax(1).tolist()) == {0, 1, 3}


@pytest.mark.parametrize("name", NOT_AIMING)
def test_attacks_that_cannot_aim_say_so(name: str) -> None:
    with pytest.raises(ValueError, match=f"targeted.random. of {name}"):
        build(name, Mixed()).set_mode_targeted_random()


def test_normalisation() -> None:
    """The attack on normalised images is the attack on the model that normalises."""
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
    shape = (1, 3, 1, 1)
    low, high = torch.tensor(mean).view(shape), torch.tensor(std).view(shape)
    for name in torchattacks.__all__:
        model = Mixed()
        whole = nn.Sequential(torchattacks_normalize(mean, std), model)
        whole.train(), model.norm.eval()
        y = predicted(whole, X)
        truth = with_generator(build(name, whole))(X, y)
        attack = with_generator(build(name, model))
        attack.set_normalization_used(mean=mean, std=std)
        with untouched(model):
            found = attack((X - low) / high, y)
        assert torch.allclose(found * high + low, truth, atol=2e-6), name
        assert "normalization_used=True" in repr(attack)


def torchattacks_normalize(mean: list[float], std: list[float]) -> nn.Module:
    from roli_fast.models import Normalize

    return Normalize(mean, std)


def test_normalisation_of_other_shapes_and_of_search_models() -> None:
    attack = torchattacks.FGSM(Engine(batch_size=2).bind(Mixed()))
    assert attack.device == torch.device("cpu")
    attack.set_normalization_used([0.0] * 3, [1.0] * 3)
    truth = torchattacks.FGSM(Mixed())(X, Y)
    assert torch.allclose(attack(X, Y), truth, atol=1e-6)
    with pytest.raises(ArgumentError, match=r"`inputs`: expected images \(B, 3, H, W\)"):
        attack(images(2, 1, 6, 6), Y[:2])
    with pytest.raises(ArgumentError, match="`x`: expected images within"):
        attack(X + 0.1, Y)


def test_rounding_of_normalised_black_and_white_is_forgiven() -> None:
    mean, std = [0.44, 0.45, 0.46], [0.2, 0.2, 0.21]
    attack = torchattacks.PGD(Mixed(), steps=1)
    attack.set_normalization_used(mean, std)
    x = (images(6, 3, 6, 6) > 0.5).float()
    given = (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    back = attack.inverse_normalize(given)
    assert -1e-7 < back.min() < 0
    attack(given, Y)


class Watching(nn.Module):
    """Notes its modes at each forward."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Mixed()
        self.seen: list[tuple[bool, bool, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        inner = self.inner
        self.seen.append((inner.training, inner.late_norm.training, inner.drop.training))
        return inner(x)


@pytest.mark.parametrize(
    ("modes", "seen"),
    [
        ((), (False, False, False)),
        ((True,), (True, False, False)),
        ((True, True), (True, True, False)),
        ((True, False, True), (True, False, True)),
        ((False, True, True), (False, False, False)),
    ],
)
def test_training_modes(modes: tuple[bool, ...], seen: tuple[bool, ...]) -> None:
    model = Watching()
    attack = torchattacks.PGD(model, steps=2, random_start=False)
    attack.set_model_training_mode(*modes)
    before = picture(model)
    with torch.random.fork_rng():  # dropout draws
        attack(X, Y)
    assert set(model.seen) == {seen}
    model.seen.clear()
    assert same(picture(model), before)


def test_batchs_statistics_are_what_a_training_model_uses() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.outputs = nn.BatchNorm1d(4, affine=False), []

        def forward(self, x: Tensor) -> Tensor:
            self.outputs.append(self.norm(x))
            return self.outputs[-1]

    model = Net().eval()
    attack = torchattacks.FGSM(model)
    attack.set_model_training_mode(True, True)
    attack(images(8, 4), Y[:1].expand(8))
    assert model.outputs[0].mean(0).abs().max() < 1e-6
    assert model.norm.num_batches_tracked == 0 and not model.norm.training


def test_a_layer_of_two_names_gets_its_statistics_back() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU())
    model.append(model[1])
    buffers = [*model[1].buffers()]
    attack = torchattacks.PGD(model, steps=2, random_start=False)
    attack.set_model_training_mode(True, True)
    with untouched(model):
        attack(images(8, 4), Y[:1].expand(8))
        with pytest.raises(ArgumentError, match="`y`"):
            attack(images(8, 4), Y[:1].expand(8) + 9)
    assert all(one is other for one, other in zip(buffers, model[1].buffers(), strict=True))


GREY = (X * 255).round() / 255
"""As a file of images has them."""


def test_return_types() -> None:
    attack = with_generator(torchattacks.PGD(Mixed(), eps=8 / 255))
    truth = attack(GREY, Y)
    with_generator(attack).set_return_type("int")
    found = attack(GREY, Y)
    assert found.dtype == torch.uint8
    change, levels = (truth - GREY) * 255, found.int() - (GREY * 255).round().int()
    assert torch.equal(levels, ((change.abs() + 1e-3).floor() * change.sign()).int())
    assert levels.abs().max() == 8
    with pytest.raises(ArgumentError, match="`type`: expected 'float' or 'int', got 'double'"):
        attack.set_return_type("double")
    attack.set_normalization_used([0.5] * 3, [0.5] * 3)
    with pytest.raises(ArgumentError, match="no uint8 form"):
        attack.set_return_type("int")
    with pytest.raises(ArgumentError, match="no uint8 form"):
        attack(GREY * 2 - 1, Y)


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("levels", [0.4, 2.7, 8])
def test_numbers_of_saved_pixels(levels: float, normalised: bool, tmp_path: Path) -> None:
    """Accuracy and distance are those of the file's images, which are in the ball."""
    model, shift = Mixed().eval(), 0.5 if normalised else 0.0
    attack = with_generator(torchattacks.PGD(model, eps=levels / 255))
    if normalised:
        attack.set_normalization_used([0.5] * 3, [1.0] * 3)
    with torch.no_grad():
        y = model(GREY - shift).argmax(1)
    loader = DataLoader(TensorDataset(GREY - shift, y), batch_size=4)
    options: Any = dict(save_predictions=True, save_clean_inputs=True, save_type="int")
    accuracy, far, _ = attack.save(loader, tmp_path / "int.pt", return_verbose=True, **options)
    loaded = attack.load(tmp_path / "int.pt", 9, load_predictions=True, load_clean_inputs=True)
    x_adv, labels, predictions, clean = next(iter(loaded))
    assert torch.equal(clean, GREY) and torch.equal(labels, y)
    assert ((x_adv - clean).abs() * 255).max() <= levels + 1e-4
    with torch.no_grad():
        seen = model(x_adv - shift).argmax(1)
    assert torch.equal(seen, predictions)
    assert accuracy == pytest.approx(100 * (seen == y).float().mean().item())
    wrong = (x_adv - clean).flatten(1).norm(dim=1)[seen != y]
    assert far == pytest.approx(wrong.mean().item(), rel=1e-5, nan_ok=True)
    assert (levels > 1) or accuracy == 100
