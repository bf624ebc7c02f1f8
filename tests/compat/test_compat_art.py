"""ART (1.20) around our attacks, and its own PGD as an oracle.

Not installed with the package's tests. To run these: `pip install adversarial-robustness-toolbox`.
"""

import sys
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import FixedLogits, Mixed, images, untouched
from torch import nn

from roli_fast.attacks import PGD, AutoAttack, Square
from roli_fast.compat.art import as_art_attack
from roli_fast.errors import ArgumentError

X = images(8, 3, 6, 6).numpy()
MEAN, STD = np.float32([0.44, 0.45, 0.46]), np.float32([0.2, 0.2, 0.21])


@pytest.fixture(scope="module")
def art() -> Any:
    reason = "ART is not installed: pip install adversarial-robustness-toolbox"
    pytest.importorskip("art.attacks.evasion", reason=reason)
    pytest.importorskip("art.estimators.classification", reason=reason)
    return sys.modules["art"]


def estimator(art: Any, model: nn.Module, **options: Any) -> Any:
    options = {"clip_values": (0.0, 1.0), "input_shape": (3, 6, 6), **options}
    return art.estimators.classification.PyTorchClassifier(
        model=model, loss=nn.CrossEntropyLoss(), nb_classes=4, device_type="cpu", **options
    )


def predicted(classifier: Any, x: Any) -> Any:
    return classifier.predict(x).argmax(1)


@pytest.mark.parametrize("preprocessing", [None, (MEAN.reshape(3, 1, 1), STD.reshape(3, 1, 1))])
@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_same_images_as_arts_pgd(
    art: Any, norm: str, targeted: bool, preprocessing: Any
) -> None:
    """To 1e-6. In l2 away from the box: ART clips to it before it projects, all others after."""
    classifier = estimator(art, Mixed().eval(), preprocessing=preprocessing)
    x, eps = {"linf": (X, 8 / 255), "l2": (0.4 + 0.2 * X, 0.4)}[norm]
    y = (predicted(classifier, x) + targeted) % 4
    theirs = art.attacks.evasion.ProjectedGradientDescent(
        classifier,
        norm={"linf": np.inf, "l2": 2}[norm],
        eps=eps,
        eps_step=eps / 4,
        max_iter=6,
        targeted=targeted,
        verbose=False,
    )
    ours = as_art_attack(
        PGD(norm=norm, eps=eps, step_size=eps / 4, steps=6, random_start=False),
        classifier,
        targeted=targeted,
    )
    truth, found = theirs.generate(x, y), ours.generate(x, y)
    assert found.dtype == np.float32 and found.shape == x.shape
    assert np.abs(found - truth).max() <= 1e-6
    assert np.abs(truth - x).max() > 0.01
    assert norm == "linf" or 0 < truth.min()


def test_the_model_is_given_back(art: Any) -> None:
    model, attack = Mixed(), AutoAttack(steps=2, n_queries=5)
    classifier = estimator(art, model)
    y = predicted(estimator(art, Mixed().eval()), X)
    with untouched(model):
        found = as_art_attack(attack, classifier).generate(x=X, y=y)
        with pytest.raises(ArgumentError, match="`y`"):
            as_art_attack(attack, classifier).generate(X, y + 9)
    assert np.abs(found - X).max() > 0
    theirs = art.attacks.evasion.ProjectedGradientDescent(classifier, max_iter=1, verbose=False)
    theirs.generate(X, y)
    assert not model.training


def test_the_batch_size_plays_no_part(art: Any) -> None:
    classifier = estimator(art, Mixed())
    for attack in (PGD(), Square(n_queries=20)):
        whole = as_art_attack(attack, classifier, batch_size=8).generate(X)
        parts = as_art_attack(attack, classifier, batch_size=3).generate(X)
        other = as_art_attack(attack, classifier, batch_size=3, seed=1).generate(X)
        assert np.allclose(whole, parts, rtol=0, atol=1e-6)
        assert np.abs(other - whole).max() > 1e-3
    drawing = as_art_attack(PGD(), classifier, seed=None)  # by torch's generator
    assert not np.array_equal(drawing.generate(X), drawing.generate(X))


def test_labels_in_every_form(art: Any) -> None:
    classifier = estimator(art, FixedLogits(torch.eye(4)), input_shape=(4,))
    x, y = np.full((5, 4), 0.5, np.float32), np.array([0, 1, 2, 3, 0])
    attack = as_art_attack(PGD(random_start=False), classifier)
    for form in (y, y[:, None], np.eye(4)[y], torch.from_numpy(y)):
        assert ((attack.generate(x, form) - x).argmin(1) == y).all()
    x[np.arange(5), y] = 0.6  # without labels: those that the model predicts
    assert ((attack.generate(x) - x).argmin(1) == y).all()
    assert attack.generate(x[:0]).shape == (0, 4)


def test_a_mask_as_in_arts_pgd(art: Any) -> None:
    """Their images to 1e-6, and what the mask forbids to the last bit."""
    classifier, y = estimator(art, Mixed().eval()), predicted(estimator(art, Mixed().eval()), X)
    mask = np.zeros_like(X)
    mask[..., :3] = 1
    ours = as_art_attack(PGD(step_size=0.01, steps=4, random_start=False), classifier)
    theirs = art.attacks.evasion.ProjectedGradientDescentPyTorch(
        classifier, eps=8 / 255, eps_step=0.01, max_iter=4, verbose=False
    )
    found = ours.generate(X, y, mask=mask)
    assert np.array_equal(found[..., 3:], X[..., 3:]) and (found[..., :3] != X[..., :3]).all()
    np.testing.assert_allclose(found, theirs.generate(X, y, mask=mask), rtol=0, atol=1e-6)
    square = as_art_attack(Square(eps=0.3, n_queries=20), classifier)
    found = square.generate(X, mask=mask)  # y is what the model says
    assert np.array_equal(found[..., 3:], X[..., 3:])
    assert (predicted(classifier, found) != y).any()


def test_it_is_an_evasion_attack_with_arts_parameters(art: Any) -> None:
    attack = as_art_attack(PGD(), estimator(art, Mixed()))
    assert isinstance(attack, art.attacks.EvasionAttack)
    attack.set_params(batch_size=5, targeted=True)
    assert attack.batch_size == 5 and attack.targeted and "batch_size=5" in repr(attack)
    with pytest.raises(ArgumentError, match="`y`: expected the targets"):
        attack.generate(X)
    with pytest.raises(ArgumentError, match="`eps`: expected an attribute that RoliFastAttack"):
        attack.eps = 0.1


def test_clip_values_are_the_bounds(art: Any) -> None:
    wide = estimator(art, Mixed(), clip_values=(-1.0, 3.0))
    given = X * 4 - 1
    found = as_art_attack(PGD(), wide).generate(given)
    assert found.max() > 1
    assert abs(found - given).max() == pytest.approx(4 * 8 / 255, rel=1e-3)  # of their range
    open_ended = estimator(art, Mixed(), clip_values=None)
    assert as_art_attack(PGD(), open_ended).generate(X).max() <= 1
    each = estimator(art, Mixed(), clip_values=(np.zeros(108), np.linspace(1, 2, 108)))
    with pytest.raises(ArgumentError, match="one pair of clip values"):
        as_art_attack(PGD(), each).generate(X)


def test_preprocessing_that_torch_cannot_differentiate(art: Any) -> None:
    from art.defences.preprocessor import FeatureSqueezing  # pyright: ignore

    squeezing = FeatureSqueezing(clip_values=(0, 1), bit_depth=4)
    classifier = estimator(art, Mixed(), preprocessing_defences=[squeezing])
    with pytest.raises(ArgumentError, match="`estimator`: expected preprocessing in torch"):
        as_art_attack(PGD(), classifier).generate(X)
