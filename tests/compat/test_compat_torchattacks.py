"""torchattacks' interface: what every class in it must do, targets, normalisation, modes and files.

No torchattacks here.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import Counting, FixedLogits, Mixed, images, picture, same, untouched
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchattacks_cases import (
    AIMING,
    EPS,
    NOT_AIMING,
    SEARCHES,
    X,
    Y,
    build,
    predicted,
    with_generator,
)

import roli_fast.compat.torchattacks as torchattacks
from roli_fast import attacks as ours
from roli_fast.engine import Engine
from roli_fast.errors import ArgumentError, ArgumentTypeError
from roli_fast.models import Normalize
from roli_fast.norms import NORMS

pytestmark = pytest.mark.usefixtures("short_autoattack")


@pytest.fixture(params=torchattacks.__all__)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def distance(norm: str, x_adv: Tensor) -> float:
    return NORMS[norm].distance(x_adv, X).max().item()


def test_it_finds_images_in_ball_and_box(name: str) -> None:
    attack = build(name, Mixed())
    x_adv = attack(X, Y)
    assert x_adv.shape == X.shape and x_adv.dtype == X.dtype and not x_adv.requires_grad
    eps = torch.tensor(getattr(attack, "eps", EPS)).double().item()
    assert distance("l2" if name == "PGDL2" else "linf", x_adv) <= eps
    assert 0 <= x_adv.min() and x_adv.max() <= 1


def test_nothing_is_left_behind(name: str) -> None:
    model = Mixed()
    attack, kept = with_generator(build(name, model)), (X.clone(), Y.clone())
    with untouched(model):
        attack(X, Y)
    assert torch.equal(X, kept[0]) and torch.equal(Y, kept[1])


class Failing(nn.Module):
    """Raises at its third forward."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.calls = Mixed(), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == 3:
            raise RuntimeError("third forward")
        return self.inner(x)


def test_nothing_is_left_behind_by_an_exception(name: str) -> None:
    model = Failing()
    attack = with_generator(build(name, model))
    if name in ("FGSM", "FFGSM"):  # one forward each
        model.calls = 2
    with untouched(model), pytest.raises(RuntimeError, match="third forward"):
        attack(X, Y)


def test_the_global_generator_moves_by_a_number_a_search(name: str) -> None:
    """Theirs draws every pixel from it, or reseeds it."""
    searches = 4 if name == "AutoAttack" else 1
    with torch.random.fork_rng():
        torch.manual_seed(0)
        before = torch.get_rng_state()
        torch.randint(2**63 - 1, (searches,))
        after = torch.get_rng_state()
        torch.manual_seed(0)
        build(name, Mixed())(X, Y)
        state = torch.get_rng_state()
        assert torch.equal(state, before) or torch.equal(state, after)
        seeded = name in SEARCHES and name != "AutoAttack"
        assert torch.equal(state, before) or not seeded


def test_the_seed_decides(name: str) -> None:
    found = []
    with torch.random.fork_rng():
        for seed in (3, 3):
            torch.manual_seed(seed)
            found.append(build(name, Mixed())(X, Y))
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ((X - 0.45) / 0.225, Y, r"`x`: expected images within bounds"),
        (X, Y + 9, r"`y`: expected labels in \[0, 4\)"),
        (X, Y.int(), "`y`: expected one class a sample, an int64"),
        (X.numpy(), Y, "`inputs`: expected a torch.Tensor"),
        (X, Y.tolist(), "`labels`: expected a torch.Tensor"),
        (X, None, "`labels`: expected labels"),
    ],
)
def test_what_cannot_be_attacked(name: str, x: Any, y: Any, message: str) -> None:
    model = Mixed()
    attack = with_generator(build(name, model))
    if name == "TPGD" and "`y`" in message + "`y`" * (y is None):  # it asks for no labels
        with untouched(model):
            assert torch.equal(attack(x, y), with_generator(build(name, model))(x, Y))
        return
    with untouched(model), pytest.raises((ArgumentError, ArgumentTypeError), match=message):
        attack(x, y)


@pytest.mark.parametrize("name", [n for n in torchattacks.__all__ if n != "MultiAttack"])
def test_radii_of_zero_and_one_a_sample(name: str) -> None:
    assert torch.equal(build(name, Mixed(), eps=0)(X, Y), X)
    radii = torch.tensor([0.0, 0.01, 0.02, 0.03, 0.3, 0.0])
    x_adv = build(name, Mixed(), eps=radii)(X, Y)
    norm = NORMS["l2" if name == "PGDL2" else "linf"]
    assert (norm.distance(x_adv, X) <= radii.double()).all()
    with pytest.raises(ArgumentError, match="`eps`"):
        build(name, Mixed(), eps=-0.1)(X, Y)


def test_attributes_may_change_between_calls() -> None:
    attack = torchattacks.PGD(Mixed())
    attack.eps, attack.steps, attack.random_start = 0.01, 1, False
    model = attack.model = Counting(Mixed())
    assert distance("linf", attack(X, Y)) <= 0.01 + 1e-9
    assert model.forwards == 1


def test_inputs_go_to_the_models_device() -> None:
    class Recording(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.eye(4, device="meta"))

    attack = torchattacks.PGD(Recording())
    assert attack.device == torch.device("meta")
    attack.set_device("cpu")
    assert attack.device == torch.device("cpu")
    assert torchattacks.PGD(lambda x: x).device is None


def test_multi_attack_attacks_what_is_left() -> None:
    model = Counting(Mixed())
    first = torchattacks.PGD(model, eps=0.02, steps=2, random_start=False)
    second = torchattacks.PGDL2(model, eps=0.5, steps=3, random_start=False)
    weak, strong = first(X, Y), second(X, Y)
    fooled = predicted(model, weak) != Y
    whole = torchattacks.MultiAttack([first, second])
    truth = torch.where(fooled.view(-1, 1, 1, 1), weak, X)
    second_fools = ~fooled & (predicted(model, strong) != Y)
    truth = torch.where(second_fools.view(-1, 1, 1, 1), strong, truth)
    assert torch.allclose(whole(X, Y), truth, atol=1e-6)
    result = whole.run(X, Y)
    assert result.fooled is not None and torch.equal(result.fooled, fooled | second_fools)
    model.forwards = model.backwards = 0
    cost = whole.run(X, Y).cost
    assert (cost.forwards, cost.backwards) == (model.forwards, model.backwards)


def test_multi_attack_needs_two_attacks_on_one_model() -> None:
    one, other = torchattacks.PGD(Mixed()), torchattacks.PGD(Mixed())
    with pytest.raises(ValueError, match="`attacks`: expected two attacks or more, got 1"):
        torchattacks.MultiAttack([one])
    with pytest.raises(ValueError, match="on one model"):
        torchattacks.MultiAttack([one, other])


def test_multi_attack_hands_settings_on() -> None:
    model = Mixed()
    pair = [torchattacks.PGD(model), torchattacks.FGSM(model)]
    whole = torchattacks.MultiAttack(pair)
    whole.set_model_training_mode(True)
    whole.set_normalization_used([0.5] * 3, [0.5] * 3)
    whole.set_device("meta")
    other = Mixed()
    whole.set_model(other)
    for one in (whole, *pair):
        assert one.normalization_used is not None and one.device == torch.device("meta")
        assert one.model is other and one._modes.model_training


def test_autoattack_makes_a_hundred_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    built: Any = torchattacks.AutoAttack(Mixed(), norm="L2").build(0.5)
    assert built == ours.AutoAttack(norm="l2", eps=0.5, version="standard")
    assert [part.label for part in built.parts] == [
        "apgd-ce-100",
        "apgd-t-dlr-100",
        "fab-t-100",
        "square-5000",
    ]
    with pytest.raises(ArgumentError, match="`version`"):
        torchattacks.AutoAttack(Mixed(), version="custom")


def test_searches_log_when_verbose(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "roli_fast.compat"):
        torchattacks.APGD(Mixed(), steps=2)(X, Y)
        assert not caplog.records
        torchattacks.APGD(Mixed(), steps=2, verbose=True)(X, Y)
    assert "of 6 images fool" in caplog.text
    caplog.clear()
    attack = torchattacks.APGDT(Mixed(), steps=2)
    attack(X, Y), attack(X, Y)
    assert [r.getMessage() for r in caplog.records] == [
        "APGDT: 3 targets, not 9: there are 4 classes"
    ]
    caplog.clear()
    with caplog.at_level(logging.INFO, "roli_fast.compat"):
        torchattacks.AutoAttack(Mixed())(X, Y)
        assert not [r for r in caplog.records if r.name == "roli_fast.compat"]
        torchattacks.AutoAttack(Mixed(), verbose=True)(X, Y)
    assert "square" in caplog.text and "fooled" in caplog.text


def test_fab_reads_its_radius_by_norm() -> None:
    assert [torchattacks.FAB(Mixed(), norm, eps=None).eps for norm in ("Linf", "L2", "L1")] == [
        0.3,
        1.0,
        5.0,
    ]
    with pytest.raises(ArgumentError, match="`norm`: expected 'Linf' or 'L2' or 'L1', got 'l2'"):
        torchattacks.FAB(Mixed(), "l2")


def test_bim_takes_the_papers_number_of_steps() -> None:
    assert torchattacks.BIM(Mixed(), eps=8 / 255, steps=0).steps == 10
    assert torchattacks.BIM(Mixed(), eps=16 / 255, steps=0).steps == 20


def test_upgd_takes_named_losses() -> None:
    with pytest.raises(ArgumentError, match="`loss`: expected 'ce', 'dlr', 'margin' or a"):
        torchattacks.UPGD(Mixed(), loss="kl")(X, Y)  # pyright: ignore
    attack = torchattacks.UPGD(Mixed(), loss="dlr")
    attack.set_mode_targeted_by_label()
    with pytest.raises(ArgumentError, match="needs the label too"):
        attack(X, Y)


def test_upgd_raises_a_loss_of_the_users() -> None:
    """Here that of the batch's mean cross-entropy, the one of "ce"."""
    model = Mixed().eval()
    own = torchattacks.UPGD(
        model, loss=lambda images, labels, _: nn.functional.cross_entropy(model(images), labels)
    )
    truth = torchattacks.UPGD(model)
    with untouched(model):
        assert torch.allclose(own(X, Y), truth(X, Y), atol=1e-6)


def test_an_attack_that_is_not_there_is_named() -> None:
    with pytest.raises(AttributeError, match="no 'CW'. There are: FGSM, .*Square"):
        torchattacks.CW  # noqa: B018


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
        whole = nn.Sequential(Normalize(mean, std), model)
        whole.train(), model.norm.eval()
        y = predicted(whole, X)
        truth = with_generator(build(name, whole))(X, y)
        attack = with_generator(build(name, model))
        attack.set_normalization_used(mean=mean, std=std)
        with untouched(model):
            found = attack((X - low) / high, y)
        assert torch.allclose(found * high + low, truth, atol=2e-6), name
        assert "normalization_used=True" in repr(attack)


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
