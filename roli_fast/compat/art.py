"""The Adversarial Robustness Toolbox (1.20): our attacks as its `EvasionAttack`s.

from art.estimators.classification import PyTorchClassifier
from roli_fast import PGD
from roli_fast.compat.art import as_art_attack

classifier = PyTorchClassifier(model, loss, input_shape, nb_classes, clip_values=(0, 1))
x_adv = as_art_attack(PGD(eps=8 / 255), classifier, batch_size=128).generate(x, y)   # numpy
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from roli_fast.attacks import Attack
from roli_fast.compat.peers import UserAttributes, aimed, clean_logits, library
from roli_fast.compat.view import View
from roli_fast.errors import ArgumentError, describe
from roli_fast.threat import Bounds

PACKAGE = "adversarial-robustness-toolbox"


def as_art_attack(
    attack: Attack,
    estimator: Any,
    *,
    batch_size: int = 32,
    seed: int | None = 0,
    targeted: bool = False,
) -> Any:
    """An `art.attacks.EvasionAttack` around one of our attacks.

    `generate(x, y=None, mask=None)` takes and returns numpy. y are labels (N,) or one-hot (N, C),
    by default what the model predicts. Of a mask, which broadcasts to x, only pixels where it is
    not 0 are changed; then images are attacked one by one, whatever the batch size. The estimator's
    clip values are the bounds, its preprocessing is in front of the model; the model's modes and
    gradients stay as they are.

    Args:
        attack: any attack with a field `bounds`.
        estimator: a `PyTorchClassifier`.
        batch_size: images a call of the attack; results do not depend on it, but for the last bits
            of the model's.
        seed: of the draws, the same at each `generate`; None draws it from torch's generator.
        targeted: y are the classes to aim at, for attacks that take a `target`.

    Raises:
        MissingPackageError: ART is not installed.
    """
    return _attack_class()(attack, estimator, batch_size, seed, targeted)


def _searched(estimator: Any, seen: Callable[[Tensor], Tensor] | None = None) -> View:
    """A classifier's network behind its preprocessing, and behind `seen` where it is given."""
    if estimator.preprocessing_operations and not estimator.all_framework_preprocessing:
        got = ", ".join(type(part).__name__ for part in estimator.preprocessing_operations)
        fix = "Use ART's PyTorch versions of them."
        raise ArgumentError(describe("estimator", "preprocessing in torch", got, fix))

    def logits(x: Tensor) -> Tensor:
        x = x if seen is None else seen(x)
        x, _ = estimator._apply_preprocessing(x, None, fit=False, no_grad=False)
        return estimator.model(x)

    return View(estimator.model, logits)


def _kept_outside(free: Tensor, image: Tensor, x: Tensor) -> Tensor:
    """`x`, but for the pixels of `image` (1, ...) that are not free."""
    return torch.where(free, x, image)


def _bounds_of(estimator: Any, own: Bounds | None) -> Bounds | None:
    if estimator.clip_values is None:
        return own
    low, high = (np.unique(np.asarray(value, dtype=float)) for value in estimator.clip_values)
    if len(low) != 1 or len(high) != 1:
        got = "others for each feature"
        raise ArgumentError(describe("estimator", "one pair of clip values", got))
    return float(low[0]), float(high[0])


def _labels(y: Any) -> Tensor:
    """Labels (N,) from labels (N,), (N, 1) or one-hot rows (N, C)."""
    y = np.asarray(y)
    if y.ndim == 2:
        y = y.argmax(1) if y.shape[1] > 1 else y[:, 0]
    return torch.from_numpy(y.astype(np.int64))


@cache
def _attack_class() -> Callable[..., Any]:
    art = library("art.attacks.attack", PACKAGE)
    classifier = library("art.estimators.classification.classifier", PACKAGE)
    torch_estimator = library("art.estimators.pytorch", PACKAGE)

    class RoliFastAttack(art.EvasionAttack, UserAttributes):
        """One of roli_fast's attacks."""

        attack_params = ["attack", "batch_size", "seed", "targeted"]
        _estimator_requirements = (torch_estimator.PyTorchEstimator, classifier.ClassifierMixin)

        def __init__(
            self, attack: Any, estimator: Any, batch_size: int, seed: int | None, targeted: bool
        ) -> None:
            super().__init__(estimator=estimator)
            self.attack, self.batch_size, self.seed = attack, batch_size, seed
            self._targeted = targeted
            self._built = True

        def generate(self, x: Any, y: Any = None, mask: Any = None) -> Any:
            if y is None and self.targeted:
                raise ArgumentError(describe("y", "the targets, with targeted=True", None))
            model, size = _searched(self.estimator), self.batch_size
            if mask is not None:
                mask, size = torch.from_numpy(np.asarray(mask) != 0).broadcast_to(x.shape), 1
            attack = replace(self.attack, bounds=_bounds_of(self.estimator, self.attack.bounds))
            seed = int(torch.randint(2**63 - 1, ())) if self.seed is None else self.seed
            given, found = None if y is None else _labels(y), [x[:0]]
            for start in range(0, len(x), size):
                rows, options = slice(start, start + size), {}
                part = torch.from_numpy(x[rows]).to(self.estimator.device)
                ids = torch.arange(start, start + len(part), device=part.device)
                seen = clean_logits(model, part).argmax(1) if given is None else given[rows]
                labels = seen.to(part.device)
                if self.targeted:
                    labels, options = aimed(attack, labels)
                generator = Generator(part.device).manual_seed(seed)
                free = None if mask is None else mask[rows].to(part.device)
                if free is not None:
                    model = _searched(self.estimator, partial(_kept_outside, free, part))
                adv = attack(model, part, labels, generator, sample_ids=ids, **options)
                adv = adv if free is None else _kept_outside(free, part, adv)
                found.append(adv.cpu().numpy())
            return np.concatenate(found)

    return RoliFastAttack
