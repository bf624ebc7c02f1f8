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
from roli_fast.errors import ArgumentError
from roli_fast.models import Normalize
from roli_fast.norms import NORMS

pytestmark = pytest.mark.usefixtures("short_autoattack")


@pytest.fixture(params=torchattacks.__all__)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def distance(norm: str, x_adv: Tensor) -> float:
    return NORMS[norm].distance(x_adv, X).max().item()


def test_what_every_attack_does(name: str) -> None:
    """Images in ball and box, the same for the same seed, and nothing left behind: the global
    generator moves by a number a search (theirs draws every pixel from it, or reseeds it)."""
    model, kept, found = Mixed(), (X.clone(), Y.clone()), []
    attack = build(name, model)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        before = torch.get_rng_state()
        torch.randint(2**63 - 1, (4 if name == "AutoAttack" else 1,))
        after = torch.get_rng_state()
        for _ in range(2):
            torch.manual_seed(3)
            found.append(attack(X, Y))
        state = torch.get_rng_state()
    drew_nothing = torch.equal(state, before)
    assert drew_nothing or (torch.equal(state, after) and name not in SEARCHES[:-1])
    x_adv = found[0]
    assert torch.equal(*found) and torch.equal(X, kept[0]) and torch.equal(Y, kept[1])
    assert x_adv.shape == X.shape and x_adv.dtype == X.dtype and not x_adv.requires_grad
    eps = torch.tensor(getattr(attack, "eps", EPS)).double().item()
    assert distance("l2" if name == "PGDL2" else "linf", x_adv) <= eps
    assert 0 <= x_adv.min() and x_adv.max() <= 1
    with untouched(model):
        assert torch.equal(with_generator(attack, 3)(X, Y), with_generator(attack, 3)(X, Y))


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


def test_what_cannot_be_attacked(name: str) -> None:
    model = Mixed()
    attack = with_generator(build(name, model))
    with untouched(model):
        with pytest.raises(ArgumentError, match="`x`: expected images within bounds"):
            attack((X - 0.45) / 0.225, Y)
        if name == "TPGD":  # it asks for no labels
            assert torch.equal(with_generator(attack)(X), with_generator(attack)(X, Y))
        else:
            with pytest.raises(ArgumentError, match=r"`y`: expected labels in \[0, 4\)"):
                attack(X, Y + 9)


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


def test_multi_attack_attacks_what_is_left() -> None:
    model = Mixed()
    first = torchattacks.PGD(model, eps=0.02, steps=2, random_start=False)
    second = torchattacks.PGDL2(model, eps=0.5, steps=3, random_start=False)
    weak, strong = first(X, Y), second(X, Y)
    fooled = predicted(model, weak) != Y
    truth = torch.where(fooled.view(-1, 1, 1, 1), weak, X)
    second_fools = ~fooled & (predicted(model, strong) != Y)
    truth = torch.where(second_fools.view(-1, 1, 1, 1), strong, truth)
    assert torch.allclose(torchattacks.MultiAttack([first, second])(X, Y), truth, atol=1e-6)


def test_multi_attack_hands_settings_on() -> None:
    pair = [torchattacks.PGD(Mixed()), torchattacks.FGSM(Mixed())]
    with pytest.raises(ValueError, match="on one model"):
        torchattacks.MultiAttack(pair)
    with pytest.raises(ValueError, match="`attacks`: expected two attacks or more, got 1"):
        torchattacks.MultiAttack(pair[:1])
    pair[1].model = pair[0].model
    whole = torchattacks.MultiAttack(pair)
    assert whole.device == torch.device("cpu")
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
    built: Any = torchattacks.AutoAttack(Mixed(), norm="L2").build()
    assert built == ours.AutoAttack(norm="l2", version="standard")
    assert [part.label for part in built.parts] == [
        "apgd-ce-100",
        "apgd-t-dlr-100",
        "fab-t-100",
        "square-5000",
    ]


def test_searches_log_when_verbose(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "roli_fast.compat"):
        torchattacks.APGD(Mixed(), steps=2)(X, Y)
        assert not caplog.records
        torchattacks.APGD(Mixed(), steps=2, verbose=True)(X, Y)
        torchattacks.AutoAttack(Mixed(), verbose=True)(X, Y)
    assert "of 6 images fool" in caplog.text and "AutoAttack: square" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, "roli_fast.compat"):
        torchattacks.APGDT(Mixed(), steps=2, verbose=True)(X, Y)
    assert "APGDT: 3 targets, not 9: there are 4 classes" in caplog.text


def test_arguments_that_mean_another_number() -> None:
    radii = [torchattacks.FAB(Mixed(), norm, eps=None).eps for norm in ("Linf", "L2", "L1")]
    assert radii == [0.3, 1.0, 5.0]
    assert torchattacks.BIM(Mixed(), eps=8 / 255, steps=0).steps == 10  # the paper's
    assert torchattacks.BIM(Mixed(), eps=16 / 255, steps=0).steps == 20
    fab = torchattacks.FAB(Mixed(), multi_targeted=True, n_classes=4)
    assert fab.build().targets == 3  # type: ignore[attr-defined]
    with pytest.raises(ArgumentError, match="`norm`: expected 'Linf'"):
        torchattacks.FAB(Mixed(), "l2")


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
    assert torch.equal((attack(x, goal) - x).argmax(1), goal)  # a target that is the label
    attack.set_mode_default()
    assert attack.get_mode() == "default"
    assert torch.equal((attack(x, y) - x).argmin(1), y)


@pytest.mark.parametrize(("kth", "targets"), [(1, [3, 2]), (2, [2, 1]), (3, [0, 0])])
def test_the_kth_least_likely_class(kth: int, targets: list[int]) -> None:
    model = FixedLogits(torch.eye(4))
    x = torch.tensor([[0.6, 0.7, 0.4, 0.3], [0.6, 0.5, 0.4, 0.7]])
    y = torch.tensor([1, 3])
    attack = torchattacks.FGSM(model, eps=0.1)
    attack.set_mode_targeted_least_likely(kth)
    assert (attack(x, y) - x).argmax(1).tolist() == targets


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


def test_normalisation_of_search_models() -> None:
    attack = torchattacks.FGSM(Engine(batch_size=2).bind(Mixed()))
    assert attack.device == torch.device("cpu")
    attack.set_normalization_used([0.0] * 3, [1.0] * 3)
    truth = torchattacks.FGSM(Mixed())(X, Y)
    assert torch.allclose(attack(X, Y), truth, atol=1e-6)
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
    with pytest.raises(ArgumentError, match="`y`"), torch.random.fork_rng():
        attack(X, Y + 9)
    model.seen.clear()
    after = picture(model)
    assert all(same(after[part], before[part]) for part in ("training", "state", "grad"))


GREY = (X * 255).round() / 255
"""As a file of images has them."""


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("levels", [0.4, 8])
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
