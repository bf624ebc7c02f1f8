"""Logistic regression on a kernel: how well the linearised network classifies.

Tomihari & Sato 2024 (arXiv:2405.16747) fit N C binary decisions, of which the trivial "never" gets
1 - 1/C right. Here a sample has one label: softmax over its C scores, and argmax accuracy.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax
from torch import Tensor

from roli_fast.seeds import derived_generator

STRENGTHS = tuple(10.0 ** (-4 + 8 * k / 9) for k in range(10))
"""sklearn's ten inverse strengths of L2, 1e-4 to 1e4."""

FOLDS = 5
STEPS = 2000
"""Iterations of L-BFGS, at most."""


@dataclass(frozen=True)
class Regression:
    """Accuracies are shares of samples whose label has the highest of the C scores.

    Args:
        train: on the training samples.
        test: on the test samples.
        trivial: of always saying the most frequent training label, on the test samples.
        strength: the inverse strength of L2 that cross-validation chose.
        validation: its accuracy there.
        scores: of the test samples, fp64 (M, C).
    """

    train: float
    test: float
    trivial: float
    strength: float
    validation: float
    scores: Tensor = field(repr=False)


def kernel_regression(
    kernel_train: Tensor,
    y: Tensor,
    kernel_test: Tensor,
    y_test: Tensor,
    *,
    strengths: tuple[float, ...] = STRENGTHS,
    folds: int = FOLDS,
    seed: int = 0,
) -> Regression:
    """Fit f = K a by the softmax cross-entropy with L2 in the kernel's own norm, a^T K a.

    That is training the linearised network from zero logits with weight decay. Strengths are for
    the kernel divided by its mean diagonal, so that its scale plays no part.

    Args:
        kernel_train: (N C, N C), symmetric; row n C + c is logit c of sample n (`Kernel.matrix`).
        y: labels (N,), int64.
        kernel_test: (M C, N C), test samples against training samples.
        y_test: labels (M,), int64.
        strengths: inverse strengths of L2 to choose from, by the accuracy of cross-validation, and
            among equals by its likelihood.
        folds: of cross-validation, with every class spread over them; at most N.
        seed: which sample is in which fold.
    """
    train, test = _coordinates(kernel_train, kernel_test, len(kernel_train) // len(y))
    labels, test_labels = y.cpu().numpy(), y_test.cpu().numpy()
    fold = _folds(labels, folds, seed)
    tried: list[tuple[float, float, float]] = []
    for strength in strengths:
        right = likelihood = 0.0
        for number in range(folds):
            out = fold == number
            weights = _fit(train[~out], labels[~out], strength)
            logits = train[out] @ weights
            right += float((logits.argmax(1) == labels[out]).sum())
            likelihood -= _loss(logits, labels[out])[0]
        tried.append((right / len(labels), likelihood, strength))
    validation, _, strength = max(tried)
    weights = _fit(train, labels, strength)
    scores = test @ weights
    return Regression(
        train=float(((train @ weights).argmax(1) == labels).mean()),
        test=float((scores.argmax(1) == test_labels).mean()),
        trivial=float((test_labels == np.bincount(labels).argmax()).mean()),
        strength=strength,
        validation=validation,
        scores=torch.from_numpy(scores),
    )


def _coordinates(train: Tensor, test: Tensor, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Features whose inner products are the kernel's: (N, C, r) and (M, C, r)."""
    whole = train.double().cpu()
    size = float(whole.diagonal().mean()) or 1.0
    values, vectors = torch.linalg.eigh(whole / size)
    kept = values > len(values) * torch.finfo(train.dtype).eps * values[-1]
    roots, vectors = values[kept].sqrt(), vectors[:, kept]
    ours, theirs = vectors * roots, (test.double().cpu() / size) @ vectors / roots
    return tuple(part.view(-1, classes, len(roots)).numpy() for part in (ours, theirs))


def _folds(labels: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Fold of each sample: each class, in an order of its own, goes round."""
    generator = derived_generator("folds", seed)
    order = torch.randperm(len(labels), generator=generator).numpy()
    order = order[np.argsort(labels[order], kind="stable")]
    fold = np.empty(len(labels), dtype=np.int64)
    fold[order] = np.arange(len(labels)) % folds
    return fold


def _loss(logits: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """Summed cross-entropy and its gradient in the logits (N, C)."""
    rows, found = np.arange(len(labels)), log_softmax(logits, axis=1)
    gradient = np.exp(found)
    gradient[rows, labels] -= 1
    return -float(found[rows, labels].sum()), gradient


def _fit(features: np.ndarray, labels: np.ndarray, strength: float) -> np.ndarray:
    """Weights (r,) that minimise summed cross-entropy + |w|^2 / (2 strength): convex."""
    flat = features.reshape(-1, features.shape[-1])

    def objective(weights: np.ndarray) -> tuple[float, np.ndarray]:
        loss, gradient = _loss(features @ weights, labels)
        whole = flat.T @ gradient.ravel() + weights / strength
        return loss + float(weights @ weights) / (2 * strength), whole

    start = np.zeros(features.shape[-1])
    options = {"maxiter": STEPS, "gtol": 1e-6, "ftol": 1e-12}
    return minimize(objective, start, jac=True, method="L-BFGS-B", options=options).x
