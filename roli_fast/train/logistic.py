"""Multinomial logistic regression with an L2 penalty, by L-BFGS in fp64 on features in memory."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.nn.functional import log_softmax, one_hot

from roli_fast.errors import ArgumentError, describe
from roli_fast.threat import check_positive

ROWS = 4096
"""Features that are in fp64 at once."""

PAIRS = 20
"""Steps that L-BFGS remembers."""

TOLERANCE = 1e-6
"""Largest entry of the gradient, in the coordinates of the search, at which a solution counts."""


@dataclass(frozen=True)
class Solution:
    """A head, fp64 on the features' device: `weight` (C, D), `bias` (C,).

    `loss` is the mean cross-entropy on the training features, without the penalty.
    """

    weight: Tensor
    bias: Tensor
    strength: float
    loss: float
    iterations: int
    converged: bool

    @property
    def norm(self) -> float:
        """Frobenius norm of the weight."""
        return float(torch.linalg.norm(self.weight))

    def logits(self, features: Tensor) -> Iterator[Tensor]:
        """(rows, C) in fp64, some rows (of N, D) at a time."""
        for rows in features.split(ROWS):
            yield rows.double() @ self.weight.T + self.bias


class LogisticRegression:
    """The problem: mean cross-entropy of `features @ W.T + b` plus strength / 2 ||W||_F^2.

    scikit-learn's `LogisticRegression` has the same minimum at C = 1 / (strength N): there the
    losses are summed. The bias is free. With a strength > 0 the minimum exists and is one point (of
    the biases, with mean 0); a class without images is refused, for its bias falls without end.

    It is searched for in coordinates in which the features are centred and the penalised Hessian at
    equal logits is the identity. That changes the way and not the minimum, and makes fewer
    iterations of it. An iteration passes over the features once: 4 N D C flops.

    Args:
        features: (N, D), any floating type and device; kept as they are.
        y: (N,) int64 classes.
        classes: how many there are, C.

    Raises:
        ArgumentError: features that are not finite, or of another number than the labels.
    """

    def __init__(self, features: Tensor, y: Tensor, classes: int) -> None:
        if features.ndim != 2 or len(features) != len(y) or not len(y):
            got = f"{tuple(features.shape)} for {len(y)} labels"
            raise ArgumentError(describe("features", "(N, D) for N labels, N >= 1", got))
        if not bool(torch.isfinite(features).all()):
            fix = "The backbone overflows on some image: check its weights and normalisation."
            raise ArgumentError(describe("features", "finite numbers", "NaN or infinity", fix))
        _check_every_class(y, classes)
        self._features, self._y, self._classes = features, y, classes
        self._mean, covariance = _moments(features)
        values, self._axes = torch.linalg.eigh(covariance)
        self._variances = values.clamp(min=0)

    def solve(
        self,
        strength: float,
        *,
        start: Solution | None = None,
        iterations: int = 500,
        tolerance: float = TOLERANCE,
        watch: Callable[[], object] = lambda: None,
    ) -> Solution:
        """The minimum at one strength.

        Args:
            strength: weight of the penalty, > 0: separable features have no minimum without.
            start: where to begin, the solution at a like strength say; None at equal logits.
            iterations: the most; a solution that they did not reach is not `converged`.
            tolerance: largest entry of the gradient at a solution.
            watch: called before each pass over the features; may raise to stop.
        """
        check_positive("strength", strength)
        scale = self._scale(strength)
        begin = torch.zeros(self._classes, len(self._mean) + 1, dtype=torch.float64)
        if start is not None:
            begin[:, :-1] = (start.weight @ self._axes / scale).cpu()
            begin[:, -1] = (start.bias + start.weight @ self._mean).cpu()

        def value_and_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
            watch()
            weight, bias = self._head(flat, scale)
            loss, by_weight, by_bias = self._loss(weight, bias)
            penalised = loss + strength / 2 * float(weight.square().sum())
            by_weight += strength * weight
            gradient = torch.cat([by_weight @ self._axes * scale, by_bias[:, None]], dim=1)
            return penalised, gradient.flatten().cpu().numpy()

        limits = {"maxiter": iterations, "maxfun": 2 * iterations, "maxcor": PAIRS}
        found = minimize(
            value_and_gradient,
            begin.flatten().numpy(),
            jac=True,
            method="L-BFGS-B",
            options={**limits, "gtol": tolerance, "ftol": 0.0},
        )
        weight, bias = self._head(found.x, scale)
        loss, _, _ = self._loss(weight, bias)
        steep = float(np.abs(found.jac).max())
        return Solution(
            weight=weight,
            bias=bias - weight @ self._mean,
            strength=strength,
            loss=loss,
            iterations=int(found.nit),
            converged=steep <= 10 * tolerance,  # a line search may end in rounding before
        )

    def _scale(self, strength: float) -> Tensor:
        """(D,) what makes the Hessian the identity along each principal axis: at equal logits that
        of the loss is (1 - 1 / C) / C times the covariance."""
        curvature = (1 - 1 / self._classes) / self._classes
        return (curvature * self._variances + strength).rsqrt()

    def _head(self, flat: np.ndarray, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Weight and bias for centred features."""
        found = torch.from_numpy(flat).to(scale.device).view(self._classes, -1)
        return (found[:, :-1] * scale) @ self._axes.T, found[:, -1].clone()

    def _loss(self, weight: Tensor, bias: Tensor) -> tuple[float, Tensor, Tensor]:
        """Mean cross-entropy, and its gradients by weight and bias."""
        shifted = bias - weight @ self._mean
        loss = torch.zeros((), dtype=torch.float64, device=weight.device)
        by_weight, by_bias = torch.zeros_like(weight), torch.zeros_like(bias)
        for rows, y in zip(self._features.split(ROWS), self._y.split(ROWS), strict=True):
            rows = rows.double()
            scores = log_softmax(rows @ weight.T + shifted, dim=1)
            wrong = scores.exp() - one_hot(y, self._classes)
            loss -= scores.gather(1, y[:, None]).sum()
            by_weight += wrong.T @ rows
            by_bias += wrong.sum(0)
        count = len(self._y)
        by_weight = (by_weight - torch.outer(by_bias, self._mean)) / count
        return float(loss / count), by_weight, by_bias / count


def _check_every_class(y: Tensor, classes: int) -> None:
    """Raise `ArgumentError` if some class has no image among the labels `y` (N,)."""
    absent = (torch.bincount(y, minlength=classes) == 0).nonzero().flatten().tolist()
    if absent:
        got = f"none of class {', '.join(map(str, absent[:5]))}"
        fix = "Leave the class out."
        raise ArgumentError(describe("y", "training images of every class", got, fix))


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D) in fp64, over all N."""
    dimensions = features.shape[1]
    mean = torch.zeros(dimensions, dtype=torch.float64, device=features.device)
    for rows in features.split(ROWS):
        mean += rows.double().sum(0) / len(features)
    covariance = torch.zeros(dimensions, dimensions, dtype=mean.dtype, device=mean.device)
    for rows in features.split(ROWS):
        centred = rows.double() - mean
        covariance += centred.T @ centred / len(features)
    return mean, covariance


def score(solution: Solution, features: Tensor, y: Tensor) -> tuple[float, float]:
    """Share of (N, D) features that are classified right, and their mean negative log-likelihood in
    nats."""
    right, nll = 0, 0.0
    for logits, own in zip(solution.logits(features), y.split(ROWS), strict=True):
        right += int((logits.argmax(1) == own).sum())
        nll -= float(log_softmax(logits, dim=1).gather(1, own[:, None]).sum())
    return right / len(y), nll / len(y)


def best(scores: list[tuple[float, float]]) -> int:
    """Which of some (accuracy, NLL) is chosen: the highest accuracy, of equals the lowest NLL, and
    of those the first."""
    return min(range(len(scores)), key=lambda i: (-scores[i][0], scores[i][1], i))


def strongest_first(strengths: tuple[float, ...]) -> list[float]:
    """The order in which each solution is a good start for the next."""
    return sorted(strengths, reverse=True)
