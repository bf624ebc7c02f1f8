"""torchattacks' interface: what every class must do, targets, normalisation, modes, files, and what
users override and set.

No torchattacks here.
"""

import functools
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_attacks import predicted
from tiny_models import FixedLogits, Mixed, images, picture, same, untouched
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import roli_fast.compat.torchattacks as torchattacks
from roli_fast import attacks as ours
from roli_fast.compat.torchattacks.attack import Attack
from roli_fast.errors import ArgumentError
from roli_fast.models import Normalize
from roli_fast.norms import NORMS

X = images(6, 3, 6, 6)
Y = predicted(Mixed(), X)
EPS = 8 / 255
SEARCHES = ("APGD", "APGDT", "FAB", "Square", "AutoAttack")
NOISE = ("VANILA", "GN")
"""What looks at no model."""
DRAWING = ("DIFGSM", "TIFGSM", "VMIFGSM", "VNIFGSM", "Jitter", "GN")
"""What draws at every step."""
MINIMAL = ("CW", "DeepFool")
"""What goes as far as it has to."""
GRADIENT = tuple(
    name
    for name in torchattacks.__all__
    if name not in (*SEARCHES, *NOISE, *MINIMAL, "MultiAttack")
)
AIMING = tuple(name for name in GRADIENT if name != "TPGD")
"""And FAB and Square, whose images are not always the target's."""
NOT_AIMING = (*NOISE, *MINIMAL, "TPGD", "APGD", "APGDT", "AutoAttack", "MultiAttack")
SINGLE = [*GRADIENT, *SEARCHES]
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]


@pytest.fixture(autouse=True)
def short_autoattack(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps and ten queries."""
    kind: Any = torchattacks.AutoAttack
    short = functools.partial(ours.AutoAttack, steps=3, n_queries=10)
    monkeypatch.setattr(kind, "row", replace(kind.row, kind=short))


def build(name: str, model: Any, **options: Any) -> Any:
    """The attack with few steps."""
    if name == "MultiAttack":
        return torchattacks.MultiAttack(
            [torchattacks.PGD(model, steps=2, **options), torchattacks.APGD(model, steps=3)]
        )
    short = dict(n_queries=20) if name == "Square" else {}
    return getattr(torchattacks, name)(model, **short, **options)


def with_generator(attack: Any, seed: int = 0) -> Any:
    for one in (attack, *getattr(attack, "attacks", ())):
        one.generator = torch.Generator().manual_seed(seed)
    return attack


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
    once = torch.equal(state, after) and name not in SEARCHES[:-1]
    assert drew_nothing or once or name in DRAWING
    x_adv = found[0]
    assert torch.equal(*found) and torch.equal(X, kept[0]) and torch.equal(Y, kept[1])
    assert x_adv.shape == X.shape and x_adv.dtype == X.dtype and not x_adv.requires_grad
    eps = (
        1.0
        if name in ("GN", *MINIMAL)
        else torch.tensor(getattr(attack, "eps", EPS)).double().item()
    )
    assert distance("l2" if name == "PGDL2" else "linf", x_adv) <= eps
    assert 0 <= x_adv.min() and x_adv.max() <= 1
    with untouched(model):
        assert torch.equal(with_generator(attack, 3)(X, Y), with_generator(attack, 3)(X, Y))


@pytest.mark.parametrize("name", ["PGD", "TPGD", "Square", "CW", "MultiAttack"])
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


@pytest.mark.parametrize("name", SINGLE)
def test_radii_of_zero_and_one_a_sample(name: str) -> None:
    assert torch.equal(build(name, Mixed(), eps=0)(X, Y), X)
    radii = torch.tensor([0.0, 0.01, 0.02, 0.03, 0.3, 0.0])
    x_adv = build(name, Mixed(), eps=radii)(X, Y)
    norm = NORMS["l2" if name == "PGDL2" else "linf"]
    assert (norm.distance(x_adv, X) <= radii.double()).all()
    with pytest.raises(ArgumentError, match="`eps`"):
        build(name, Mixed(), eps=-0.1)(X, Y)


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


def test_an_attack_that_is_not_there_is_named() -> None:
    with pytest.raises(AttributeError, match="no 'OnePixel'. There are: FGSM, .*Square"):
        torchattacks.OnePixel  # noqa: B018


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


@pytest.mark.parametrize("name", NOT_AIMING)
def test_attacks_that_cannot_aim_say_so(name: str) -> None:
    with pytest.raises(ValueError, match=f"targeted.random. of {name}"):
        build(name, Mixed()).set_mode_targeted_random()


def test_normalisation() -> None:
    """The attack on normalised images is the attack on the model that normalises."""
    low, high = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    for name in ("FGSM", "PGDL2", "TPGD", "NIFGSM", "DeepFool", "APGD", "Square", "MultiAttack"):
        model = Mixed()
        whole = nn.Sequential(Normalize(MEAN, STD), model)
        whole.train(), model.norm.eval()
        y = predicted(whole, X)
        truth = with_generator(build(name, whole))(X, y)
        attack = with_generator(build(name, model))
        attack.set_normalization_used(mean=MEAN, std=STD)
        with untouched(model):
            found = attack((X - low) / high, y)
        assert torch.allclose(found * high + low, truth, atol=2e-6), name
        assert "normalization_used=True" in repr(attack)


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


def normalised(x: Tensor) -> Tensor:
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    return (x - mean) / std


class Grey(torchattacks.PGD):
    def forward(self, images: Tensor, labels: Tensor) -> Tensor:  # pyright: ignore
        return images * 0 + 0.25


def test_an_overridden_forward_is_what_a_call_does() -> None:
    model = Mixed()
    attack = Grey(model)
    assert torch.equal(attack(X, Y), torch.full_like(X, 0.25))
    whole = torchattacks.MultiAttack([attack, torchattacks.PGD(model, eps=0)])
    with torch.no_grad():
        fooled = model.eval()(torch.full_like(X, 0.25)).argmax(1) != Y
    assert torch.equal((whole(X, Y) == 0.25).flatten(1).all(1), fooled) and fooled.any()
    plain: Any = torchattacks.PGD(Mixed())
    plain.forward = lambda images, labels, scale=1: images * scale
    assert torch.equal(plain(X, Y), X) and torch.equal(plain(X, Y, scale=0.5), X * 0.5)
    with pytest.raises(TypeError, match="positional arguments"):
        torchattacks.PGD(Mixed())(X, Y, 3)


def test_an_attack_of_ones_own_sees_pixels_and_a_model_in_its_modes() -> None:
    """As in torchattacks: images in [0, 1], `get_logits` normalises; parts hear of settings."""

    class Own(Attack):
        def __init__(self, model: nn.Module) -> None:
            super().__init__("Own", model)
            self.supported_mode = ["default", "targeted"]
            self.inner, self.shift = torchattacks.FGSM(model, eps=0.02), 0.05

        def forward(self, images: Tensor, labels: Tensor) -> Tensor:  # pyright: ignore
            assert not model.training and 0 <= images.min() and images.max() <= 1
            target = self.get_target_label(images, labels)
            x = images.clone().requires_grad_()
            loss = nn.functional.cross_entropy(self.get_logits(x), target)
            grad = torch.autograd.grad(loss, x)[0]
            first = (images - self.shift * grad.sign()).clamp(0, 1).detach()
            return self.inner(first, labels)

    model = Mixed()
    attack = Own(model)
    attack.set_mode_targeted_by_function(lambda _, labels: (labels + 1) % 4, quiet=True)
    assert attack.inner.targeted
    attack.set_normalization_used(MEAN, STD)
    attack.set_model_training_mode(False)
    with untouched(model):
        found = attack(normalised(X), Y)

    class Whole(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return model(normalised(x))

    model.eval()
    step, last = (torchattacks.FGSM(Whole(), eps=eps) for eps in (0.05, 0.02))
    for one in (step, last):
        one.set_mode_targeted_by_function(lambda _, labels: (labels + 1) % 4, quiet=True)
    truth = normalised(last(step(X, Y), Y))
    assert torch.allclose(found, truth, atol=1e-5)


@pytest.mark.parametrize("name", SINGLE)
def test_an_overridden_get_logits_is_what_the_attack_sees(name: str) -> None:
    """A network that returns more than logits, of which the attack on the logits is the truth."""

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Mixed()

        def forward(self, x: Tensor) -> tuple[None, Tensor]:
            return None, self.net(x)

    truth = with_generator(build(name, Mixed()))(X, Y)
    attack = with_generator(build(name, Pair()))
    attack.get_logits = lambda x: attack.model(x)[1]
    assert torch.equal(attack(X, Y), truth)
    kind: Any = getattr(torchattacks, name)
    second = type("Own", (kind,), {"get_logits": lambda self, x: self.model(x)[1]})
    short = dict(n_queries=20) if name == "Square" else {}
    assert torch.equal(with_generator(second(Pair(), **short))(X, Y), truth)


CHANGES: dict[str, Any] = {
    **dict(alpha=0.007, steps=3, random_start=None, decay=0.5, eot_iter=3),
    **dict(n_restarts=2, loss=None, thr_decr=0.6, n_target_classes=2, alpha_max=0.2, eta=1.1),
    **dict(beta=0.8, multi_targeted=None, n_queries=7, p_init=0.5, rescale_schedule=None),
    **dict(version="rand"),
}


@pytest.mark.parametrize("name", SINGLE)
def test_every_attribute_of_a_search_is_read_when_it_is_changed(name: str) -> None:
    """By the frozen attack that does the work."""
    attack = getattr(torchattacks, name)(Mixed())
    seen = 0
    for field, value in CHANGES.items():
        if field not in vars(attack) or (field == "n_target_classes" and name == "FAB"):
            continue
        before, now = attack.build(), getattr(attack, field)
        other = ("dlr" if now == "ce" else "ce") if field == "loss" else not now
        setattr(attack, field, other if value is None else value)
        assert attack.build() != before, field
        seen += 1
    assert seen == len([n for n in vars(attack) if n in CHANGES]) - (name == "FAB")


def test_a_slip_in_an_attributes_name_is_refused() -> None:
    attack = torchattacks.PGD(Mixed())
    with pytest.raises(ArgumentError, match="`stpes`: expected an attribute that PGD reads"):
        attack.stpes = 3
    own: Any = type("Own", (torchattacks.PGD,), {"helper": lambda self: self.tag})(Mixed())
    own.tag = 3  # one's own
    assert own.helper() == 3


def test_the_mean_and_std_of_mairs_models_are_used() -> None:
    class RobModel(Mixed):
        def __init__(self) -> None:
            super().__init__()
            self.mean, self.std = torch.tensor(MEAN), torch.tensor(STD)

    told = torchattacks.FGSM(Mixed())
    told.set_normalization_used(MEAN, STD)
    assert torch.equal(torchattacks.FGSM(RobModel())(normalised(X), Y), told(normalised(X), Y))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kept", [False, True])
def test_the_note_on_train_mode_is_true(
    training: bool, kept: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Behind a normalisation too; a model that is attacked in train mode is none in eval mode."""
    attack = torchattacks.AutoAttack(Mixed().train(training))
    attack.set_normalization_used([0.0] * 3, [1.0] * 3)
    attack.set_model_training_mode(kept)
    attack(X, Y)
    assert ("the model was in train mode" in caplog.text) == (training and not kept)
