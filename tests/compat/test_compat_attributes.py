"""torchattacks' interface: what users override and set works, or is refused. Never swallowed."""

from typing import Any

import pytest
import torch
from tiny_models import FixedLogits, Mixed, picture, same, untouched
from torch import Tensor, nn
from torchattacks_cases import X, Y, build, with_generator

import roli_fast.compat.torchattacks as torchattacks
from roli_fast.compat.torchattacks.attack import Attack
from roli_fast.errors import ArgumentError

SINGLE = [name for name in torchattacks.__all__ if name != "MultiAttack"]
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]


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


def test_ones_own_attack_in_training_mode_moves_no_statistics() -> None:
    seen = []

    class Own(Attack):
        def forward(self, images: Tensor, labels: Tensor) -> Tensor:  # pyright: ignore
            seen.append(self.model.training)  # type: ignore[attr-defined]
            self.get_logits(images)
            return images

    model = Mixed()
    attack = Own("Own", model)
    attack.set_model_training_mode(True, True, False)
    before = picture(model)
    attack(X, Y)
    assert seen == [True] and same(picture(model)["state"], before["state"])


@pytest.mark.parametrize("name", SINGLE)
def test_an_overridden_get_logits_is_what_the_attack_sees(
    name: str, short_autoattack: None
) -> None:
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


def test_a_multi_attack_judges_by_its_own_logits() -> None:
    model = FixedLogits(torch.eye(4))
    x, y = torch.full((2, 4), 0.5), torch.tensor([0, 1])
    x[[0, 1], y] = 0.6
    parts = [torchattacks.FGSM(model, eps=0.2), torchattacks.FGSM(model, eps=0.3)]
    for change in (dict(get_logits=lambda x: model(x) * 0), dict(model=lambda x: x * 0)):
        whole: Any = torchattacks.MultiAttack(parts)
        for name, value in change.items():
            setattr(whole, name, value)
        found = whole(x, y)  # class 0 wins always: the first is never fooled, the second at once
        assert torch.equal(found[0], x[0])
        assert torch.equal(found[1], parts[0](x, y)[1])


def test_an_overridden_target_is_aimed_at() -> None:
    class Aimed(torchattacks.FGSM):
        def get_target_label(self, inputs: Tensor, labels: Tensor | None = None) -> Tensor:
            return torch.full((len(inputs),), 2)

    attack, x = Aimed(FixedLogits(torch.eye(4)), eps=0.1), torch.full((3, 4), 0.5)
    for mode in (attack.set_mode_targeted_random, attack.set_mode_targeted_least_likely):
        mode(quiet=True)
        assert (attack(x, torch.tensor([0, 1, 3])) - x).argmax(1).tolist() == [2, 2, 2]


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


def test_normalisation_set_as_an_attribute() -> None:
    told, given = (with_generator(torchattacks.PGD(Mixed())) for _ in range(2))
    told.set_normalization_used(MEAN, STD)
    given.normalization_used = {
        "mean": torch.tensor(MEAN).view(1, 3, 1, 1),
        "std": torch.tensor(STD).view(1, 3, 1, 1),
    }
    assert torch.equal(told(normalised(X), Y), given(normalised(X), Y))


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
    training: bool, kept: bool, short_autoattack: None, caplog: pytest.LogCaptureFixture
) -> None:
    """Behind a normalisation too; a model that is attacked in train mode is none in eval mode."""
    attack = torchattacks.AutoAttack(Mixed().train(training))
    attack.set_normalization_used([0.0] * 3, [1.0] * 3)
    attack.set_model_training_mode(kept)
    attack(X, Y)
    assert ("the model was in train mode" in caplog.text) == (training and not kept)
