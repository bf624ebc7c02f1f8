"""How far features move: from one model to another, and from clean images to attacked ones."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from roli_fast.analysis.costs import Cost, say
from roli_fast.analysis.gathering import Gathered as Gathered
from roli_fast.analysis.gathering import gather as gather
from roli_fast.analysis.gathering import gather_cost as gather_cost
from roli_fast.errors import ArgumentError, ArgumentTypeError, describe


@dataclass(frozen=True)
class Drift:
    """How features of the same samples differ from one model to another.

    Args:
        absolute: mean of ||phi'(x) - phi(x)||_2, Diff(F) of Tomihari & Sato 2024
            (arXiv:2405.16747), table 1.
        relative: that over the mean of ||phi(x)||_2.
        cosine: mean of cos(phi(x), phi'(x)), sample by sample.
        cka: `linear_cka`, not debiased.
    """

    absolute: float
    relative: float
    cosine: float
    cka: float


@dataclass(frozen=True)
class RobustDrift:
    """How an attack moves the features of one model.

    Args:
        absolute: mean of ||phi(x_adv) - phi(x)||_2.
        relative: that over the mean of ||phi(x)||_2.
    """

    absolute: float
    relative: float


def feature_drift_cost(images: int, dimensions: int) -> Cost:
    """No pass: the features are given."""
    return linear_cka_cost(images, dimensions).named("feature drift")


def feature_drift(before: Tensor, after: Tensor) -> Drift:
    """Drift from features `before` (N, D) to `after` (N, D), of the same samples in the same order.

    Raises:
        ArgumentError: shapes that differ, or values that are not finite.
    """
    before, after = _pair(before, after, "before", "after")
    say(feature_drift_cost(*before.shape))
    moved = _moved(before, after)
    cosine = cosine_similarity(before, after, dim=1, eps=0.0).mean().item()
    return Drift(moved.absolute, moved.relative, cosine, _cka(before, after))


def robust_drift_cost(images: int, dimensions: int) -> Cost:
    """No pass: the features are given."""
    return Cost("robust drift", flops=5.0 * images * dimensions, bytes=16 * images * dimensions)


def robust_drift(clean: Tensor, adversarial: Tensor) -> RobustDrift:
    """Drift from features of clean images (N, D) to those of attacked ones, by the same model."""
    clean, adversarial = _pair(clean, adversarial, "clean", "adversarial")
    say(robust_drift_cost(*clean.shape))
    return _moved(clean, adversarial)


def linear_cka_cost(images: int, dimensions: int, *, debiased: bool = False) -> Cost:
    """No pass: three products between dimensions, or two between samples, who are fewer or
    debiased."""
    by_sample = debiased or images < dimensions
    small, products = (images, 2) if by_sample else (dimensions, 3)
    held = 8 * (4 * images * dimensions + products * small**2)
    return Cost("linear CKA", flops=2.0 * products * images * dimensions * small, bytes=held)


def linear_cka(first: Tensor, second: Tensor, *, debiased: bool = False) -> float:
    """Linear centred kernel alignment of features (N, D) with (N, D') of the same samples.

    ||Y^T X||_F^2 / (||X^T X||_F ||Y^T Y||_F) of centred features, in [0, 1] (Kornblith et al. 2019,
    arXiv:1905.00414, section 3): 1 for features that differ by a rotation, a scale and a shift.

    Args:
        first: features X.
        second: features Y.
        debiased: with few samples for the dimensions even unrelated features look alike: 0.44 for
            noise of N = 1000 and D = 768, near 1 where N is far below D. This takes the unbiased
            products of U-centred Gram matrices instead (Szekely & Rizzo 2014, arXiv:1310.2926; the
            estimator of Song et al. 2012, JMLR 13): 0 on average where nothing is shared, so it may
            be below 0; N at least 4.

    Raises:
        ArgumentError: different numbers of samples, too few of them, or values that are not finite.
    """
    first, second = _matrix("first", first), _matrix("second", second)
    if len(first) != len(second):
        raise ArgumentError(describe("second", f"{len(first)} samples, as first", len(second)))
    widest = max(first.shape[1], second.shape[1])
    say(linear_cka_cost(len(first), widest, debiased=debiased))
    if not debiased:
        return _cka(first, second)
    if len(first) < 4:
        raise ArgumentError(describe("first", "at least 4 samples to debias", len(first)))
    own, other = _u_centred(first), _u_centred(second)
    return _ratio((own * other).sum().item(), (own.norm() * other.norm()).item())


def class_separation_cost(images: int, dimensions: int) -> Cost:
    """No pass."""
    return Cost("class separation", flops=8.0 * images * dimensions, bytes=16 * images * dimensions)


def class_separation(phi: Tensor, y: Tensor) -> float:
    """tr(S_B) / tr(S_W) of features (N, D) with labels (N,): scatter between classes over within.

    S_B = sum_c n_c (m_c - m)(m_c - m)^T and S_W = sum_i (phi_i - m_{y_i})(phi_i - m_{y_i})^T: what
    the classes explain of the features' variance over what they leave, also where there are fewer
    samples than dimensions and the usual Fisher ratio, tr(S_W^-1 S_B), is ill-conditioned. Labels
    at random give about (C - 1) / (N - C): compare it on the same samples. inf for classes that are
    points, 0 for one class alone.
    """
    phi = _matrix("phi", phi)
    if y.shape != phi.shape[:1] or y.is_floating_point():
        got = f"{y.dtype} of shape {tuple(y.shape)}"
        raise ArgumentError(describe("y", f"integer labels of shape ({len(phi)},)", got))
    say(class_separation_cost(*phi.shape))
    _, place = y.cpu().unique(return_inverse=True)
    counts = place.bincount().double()
    means = torch.zeros(len(counts), phi.shape[1], dtype=torch.float64)
    means = means.index_add_(0, place, phi) / counts[:, None]
    spread = (means - phi.mean(0)).square().sum(1)
    within = (phi - means[place]).square().sum().item()
    return _ratio((spread * counts).sum().item(), within)


def pairwise_cosine_cost(images: int, dimensions: int) -> Cost:
    """No pass."""
    return Cost("pairwise cosine", flops=6.0 * images * dimensions, bytes=16 * images * dimensions)


def pairwise_cosine(phi: Tensor, *, centred: bool = False) -> float:
    """Mean cosine over all pairs of different samples of one model, features (N, D).

    CS(F) of Tomihari & Sato 2024, table 1.

    Args:
        phi: features.
        centred: subtract the mean first. Of centred features of one length the result is
            -1 / (N - 1) whatever they are, as they add up to zero: it tells lengths from one
            another, not features that are alike.

    Returns:
        In [-1, 1]. Features of zeros have no cosine and are left out; NaN where fewer than two are
        left.
    """
    phi = _matrix("phi", phi)
    say(pairwise_cosine_cost(*phi.shape))
    if centred:
        phi = phi - phi.mean(0)
    length = phi.norm(dim=1)
    unit = phi[length > 0] / length[length > 0, None]
    count = len(unit)
    if count < 2:
        return math.nan
    return (unit.sum(0).square().sum().item() - count) / (count * (count - 1))


def _moved(before: Tensor, after: Tensor) -> RobustDrift:
    absolute = (after - before).norm(dim=1).mean().item()
    return RobustDrift(absolute, _ratio(absolute, before.norm(dim=1).mean().item()))


def _cka(first: Tensor, second: Tensor) -> float:
    first, second = first - first.mean(0), second - second.mean(0)
    if len(first) < min(first.shape[1], second.shape[1]):
        own, other = first @ first.T, second @ second.T
        shared = (own * other).sum().item()
    else:
        own, other = first.T @ first, second.T @ second
        shared = (second.T @ first).square().sum().item()
    return _ratio(shared, (own.norm() * other.norm()).item())


def _u_centred(features: Tensor) -> Tensor:
    """The Gram matrix (N, N) with rows, columns and all of it centred as if there were no diagonal,
    which is 0."""
    features, count = features - features.mean(0), len(features)
    gram = (features @ features.T).fill_diagonal_(0)
    rows = gram.sum(1) / (count - 2)
    gram = gram - rows[:, None] - rows[None] + rows.sum() / (count - 1)
    return gram.fill_diagonal_(0)


def _ratio(above: float, below: float) -> float:
    if below == 0:
        return math.nan if above == 0 else math.inf
    return above / below


def _pair(first: Tensor, second: Tensor, *names: str) -> tuple[Tensor, Tensor]:
    first, second = _matrix(names[0], first), _matrix(names[1], second)
    if first.shape != second.shape:
        expected = f"the shape {tuple(first.shape)} of {names[0]}"
        raise ArgumentError(describe(names[1], expected, tuple(second.shape)))
    return first, second


def _matrix(name: str, value: Tensor) -> Tensor:
    """As fp64 on the CPU."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise ArgumentTypeError(describe(name, "a floating-point tensor (N, D)", got))
    if value.ndim != 2 or not value.numel():
        raise ArgumentError(describe(name, "features (N, D)", tuple(value.shape)))
    value = value.detach().cpu().double()
    if not bool(value.isfinite().all()):
        raise ArgumentError(describe(name, "finite features", "NaN or infinity among them"))
    return value
