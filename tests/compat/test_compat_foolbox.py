"""foolbox (3.3) around our attacks, and its own PGD as an oracle.

Not installed with the package's tests. To run these: `pip install foolbox`.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_models import Mixed, images, untouched
from torch import Tensor, nn

from roli_fast.attacks import APGD, APGDT, CW, FAB, PGD
from roli_fast.compat.foolbox import as_foolbox_attack, from_foolbox_model
from roli_fast.errors import ArgumentError, ArgumentTypeError
from roli_fast.norms import NORMS

X = images(8, 3, 6, 6)
MEAN, STD = [0.44, 0.45, 0.46], [0.2, 0.2, 0.21]
EPSILONS = [0.0, 0.01, 8 / 255]


@pytest.fixture(scope="module")
def foolbox() -> Any:
    return pytest.importorskip("foolbox", reason="foolbox is not installed: pip install foolbox")


def network() -> Any:
    return Mixed().eval()


def wrapped(foolbox: Any, model: nn.Module, **options: Any) -> Any:
    options = {"bounds": (0, 1), **options}
    return foolbox.PyTorchModel(model, device="cpu", **options)


def labels(fmodel: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        return fmodel(x).argmax(1)


def test_raw_clipped_and_flags_for_several_epsilons(foolbox: Any) -> None:
    """Of a model in train mode, too, which is given back."""
    fmodel = wrapped(foolbox, network())
    y = labels(fmodel, X)
    attack = as_foolbox_attack(PGD(random_start=False, steps=4))
    raw, clipped, flags = attack(fmodel, X, y, epsilons=EPSILONS)
    assert flags.shape == (3, 8) and flags.dtype == torch.bool
    for eps, image, inside, fooled in zip(EPSILONS, raw, clipped, flags, strict=True):
        truth = PGD(eps=eps, random_start=False, steps=4)(network(), X, y) if eps else X
        assert torch.equal(image, truth)
        assert torch.allclose(inside, image, rtol=0, atol=6e-8)
        assert torch.equal(fooled, labels(fmodel, inside) != y)
    one = attack(fmodel, X, y, epsilons=EPSILONS[2])
    assert torch.equal(one[0], raw[2]) and torch.equal(one[2], flags[2])
    with pytest.warns(UserWarning, match="training mode"):
        trained = wrapped(foolbox, model := Mixed())
    goal = foolbox.criteria.Misclassification(y)
    with untouched(model):
        assert torch.equal(attack.run(trained, X, goal, epsilon=EPSILONS[2]), raw[2])


@pytest.mark.parametrize("bounds", [(0, 1), (-1, 1), (0, 255)])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_same_images_as_foolboxs_pgd(foolbox: Any, norm: str, bounds: tuple[int, int]) -> None:
    """To 1e-6 of the range (l2: their projection rounds elsewhere); with preprocessing inside."""
    low, high = bounds
    span = high - low
    size = [1, 3, 1, 1]
    mean, std = (torch.tensor(v).view(size) * span for v in (MEAN, STD))
    fmodel = wrapped(
        foolbox, network(), bounds=bounds, preprocessing=dict(mean=mean + low, std=std)
    )
    x, eps = X * span + low, {"linf": 8 / 255, "l2": 0.4}[norm] * span
    y = labels(fmodel, x)
    kind = {"linf": foolbox.attacks.LinfPGD, "l2": foolbox.attacks.L2PGD}[norm]
    theirs = kind(steps=6, rel_stepsize=0.25, random_start=False)
    ours = as_foolbox_attack(PGD(norm=norm, steps=6, random_start=False))
    for criterion in (y, foolbox.criteria.TargetedMisclassification((y + 1) % 4)):
        truth, _, their_flags = theirs(fmodel, x, criterion, epsilons=eps)
        found, _, flags = ours(fmodel, x, criterion, epsilons=eps)
        assert (found - truth).abs().max() <= 1e-6 * span
        assert (truth - x).abs().max() > 0.01 * span
        assert torch.equal(flags, their_flags)


@pytest.mark.parametrize("transform", ["wrapper", "copy", "none"])
def test_a_foolbox_model_under_our_attack(foolbox: Any, transform: str) -> None:
    model = network()
    fmodel = wrapped(foolbox, model, preprocessing=dict(mean=MEAN, std=STD, axis=-3))
    x = X
    if transform != "none":
        fmodel = fmodel.transform_bounds((0, 2), wrapper=transform == "wrapper")
        x = X * 2
    module = from_foolbox_model(fmodel)
    assert [m for m in module.modules() if m is model] == [model]
    y = labels(fmodel, x)
    model.train()
    bounds = (0.0, 2.0) if transform != "none" else (0.0, 1.0)
    attack = PGD(eps=0.05, bounds=bounds, random_start=False)
    with untouched(model):
        x_adv = attack(module, x, y)
    model.eval()
    assert (labels(fmodel, x_adv) != y).sum() >= 1
    assert NORMS["linf"].distance(x_adv, x).max() <= 0.0501


def test_a_model_of_ones_own_is_run_as_it_is(foolbox: Any) -> None:
    class Own(foolbox.models.Model):
        bounds = foolbox.types.Bounds(0, 1)

        def __call__(self, inputs: Any) -> Any:
            return inputs

    x, y = images(3, 4), torch.tensor([0, 1, 2])
    moved = as_foolbox_attack(PGD(random_start=False))(Own(), x, y, epsilons=0.1)[0] - x
    assert torch.equal(moved.argmin(1), y)


@pytest.mark.parametrize(
    ("attack", "peer", "options"),
    [
        (FAB(steps=10), "L2DeepFoolAttack", {}),
        (
            CW(steps=200, learning_rate=0.05),
            "L2CarliniWagnerAttack",
            dict(steps=200, stepsize=0.05),
        ),
    ],
)
def test_the_closest_image_without_a_limit(
    foolbox: Any, attack: Any, peer: str, options: dict[str, Any]
) -> None:
    """As near as foolbox's own, in l2, where it finds one; one search serves all epsilons."""
    fmodel = wrapped(foolbox, network())
    y = labels(fmodel, X)
    raw, clipped, flags = as_foolbox_attack(replace(attack, norm="l2"))(
        fmodel, X, y, epsilons=[None, 0.3]
    )
    assert raw[0] is raw[1] and torch.equal(clipped[0], raw[0])
    lengths = (raw[0] - X).flatten(1).norm(dim=1)
    assert flags[0].all() and torch.equal(flags[1], lengths <= 0.3)
    theirs = getattr(foolbox.attacks, peer)(**options)
    best = (theirs(fmodel, X, y, epsilons=None)[0] - X).flatten(1).norm(dim=1)
    assert (lengths < 1.1 * best).all()


@pytest.mark.parametrize("attack", [APGD(steps=20), FAB(steps=20)], ids=lambda one: one.label)
def test_towards_a_class(foolbox: Any, attack: Any) -> None:
    fmodel = wrapped(foolbox, network())
    target = (labels(fmodel, X) + 1) % 4
    goal = foolbox.criteria.TargetedMisclassification(target)
    _, clipped, flags = as_foolbox_attack(attack)(fmodel, X, goal, epsilons=0.5)
    assert flags.all() and torch.equal(labels(fmodel, clipped), target)


def test_what_cannot_be_done(foolbox: Any) -> None:
    fmodel = wrapped(foolbox, network())
    y = labels(fmodel, X)
    target = foolbox.criteria.TargetedMisclassification((y + 1) % 4)
    with pytest.raises(ArgumentTypeError, match="takes no target in a call"):
        as_foolbox_attack(APGDT(steps=2, loss="ce"))(fmodel, X, target, epsilons=0.1)
    with pytest.raises(ArgumentError, match="depends on the label"):
        as_foolbox_attack(PGD(loss="dlr"))(fmodel, X, target, epsilons=0.1)
    with pytest.raises(ArgumentError, match="`steps`: expected an attribute that RoliFastAttack"):
        as_foolbox_attack(PGD()).steps = 3
