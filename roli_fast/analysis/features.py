"""Measures of features, logits and heads: how far features move, how well they separate classes,
how large the head is, what is left to learn, and how fast margins move with the image.

All but `margin_sensitivity` are functions of tensors that `gather` gives, and make no pass through
a model; sums are taken in fp64 on the CPU.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, one_hot

from roli_fast.analysis.view import LinearHead
from roli_fast.data import Batch
from roli_fast.engine import Engine, InputGradient, bound
from roli_fast.engine.input_gradient import check_labels
from roli_fast.errors import ArgumentError, describe
from roli_fast.losses import at_least_float32, margin
from roli_fast.norms import NORMS


@dataclass(frozen=True)
class Drift:
    """How features of the same samples differ from one model to another.

    Args:
        absolute: mean of ||phi'(x) - phi(x)||_2, Diff(F) of Tomihari & Sato 2024
            (arXiv:2405.16747), table 1.
        relative: that over the mean of ||phi(x)||_2.
        cosine: mean of cos(phi(x), phi'(x)), sample by sample.
        cka: `linear_cka`.
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


def feature_drift(before: Tensor, after: Tensor) -> Drift:
    """Drift from features `before` (N, D) to `after` (N, D), of the same samples in the same order.

    Raises:
        ArgumentError: shapes that differ.
    """
    moved = robust_drift(before, after)
    before, after = _matrix(before), _matrix(after)
    cosine = cosine_similarity(before, after, dim=1, eps=0.0).mean().item()
    return Drift(moved.absolute, moved.relative, cosine, linear_cka(before, after))


def robust_drift(clean: Tensor, adversarial: Tensor) -> RobustDrift:
    """Drift from features of clean images (N, D) to those of attacked ones, by the same model."""
    clean, adversarial = _matrix(clean), _matrix(adversarial)
    if clean.shape != adversarial.shape:
        got = f"{tuple(clean.shape)} and {tuple(adversarial.shape)}"
        raise ArgumentError(describe("features", "two matrices of one shape", got))
    absolute = (adversarial - clean).norm(dim=1).mean().item()
    return RobustDrift(absolute, _ratio(absolute, clean.norm(dim=1).mean().item()))


def linear_cka(first: Tensor, second: Tensor) -> float:
    """Linear centred kernel alignment of features (N, D) with (N, D') of the same samples.

    ||Y^T X||_F^2 / (||X^T X||_F ||Y^T Y||_F) of centred features, in [0, 1] (Kornblith et al. 2019,
    arXiv:1905.00414, section 3): 1 for features that differ by a rotation, a scale and a shift.
    With few samples for the dimensions even unrelated features look alike: 0.44 for noise of
    N = 1000 and D = 768, near 1 where N is far below D.

    Args:
        first: features X.
        second: features Y.

    Raises:
        ArgumentError: different numbers of samples.
    """
    first, second = _matrix(first), _matrix(second)
    if len(first) != len(second):
        raise ArgumentError(describe("second", f"{len(first)} samples, as first", len(second)))
    first, second = first - first.mean(0), second - second.mean(0)
    if len(first) < min(first.shape[1], second.shape[1]):
        own, other = first @ first.T, second @ second.T
        shared = (own * other).sum().item()
    else:
        own, other = first.T @ first, second.T @ second
        shared = (second.T @ first).square().sum().item()
    return _ratio(shared, (own.norm() * other.norm()).item())


def class_separation(phi: Tensor, y: Tensor) -> float:
    """tr(S_B) / tr(S_W) of features (N, D) with labels (N,): scatter between classes over within.

    S_B = sum_c n_c (m_c - m)(m_c - m)^T and S_W = sum_i (phi_i - m_{y_i})(phi_i - m_{y_i})^T: what
    the classes explain of the features' variance over what they leave, also where there are fewer
    samples than dimensions and the usual Fisher ratio, tr(S_W^-1 S_B), is ill-conditioned. Labels
    at random give about (C - 1) / (N - C): compare it on the same samples. inf for classes that are
    points, 0 for one class alone.
    """
    phi = _matrix(phi)
    _, place = y.cpu().unique(return_inverse=True)
    counts = place.bincount().double()
    means = torch.zeros(len(counts), phi.shape[1], dtype=torch.float64)
    means = means.index_add_(0, place, phi) / counts[:, None]
    spread = (means - phi.mean(0)).square().sum(1)
    within = (phi - means[place]).square().sum().item()
    return _ratio((spread * counts).sum().item(), within)


def pairwise_cosine(phi: Tensor) -> float:
    """Mean cosine over all pairs of different samples of one model, features (N, D).

    CS(F) of Tomihari & Sato 2024, table 1. Features of zeros have no cosine and are left out.

    Returns:
        In [-1, 1]; NaN where fewer than two are left.
    """
    phi = _matrix(phi)
    length = phi.norm(dim=1)
    unit = phi[length > 0] / length[length > 0, None]
    count = len(unit)
    if count < 2:
        return math.nan
    return (unit.sum(0).square().sum().item() - count) / (count * (count - 1))


@dataclass(frozen=True, eq=False)
class HeadNorms:
    """Norms of a head V (C, D), b (C,).

    Args:
        norm: ||V||_F, the bias apart: Norm(C) of Tomihari & Sato 2024 (arXiv:2405.16747), table 1.
        rows: ||v_c||_2, (C,) on the CPU; their squares add up to that of `norm`.
        bias: ||b||_2; 0 without a bias.
    """

    norm: float
    rows: Tensor
    bias: float


def head_norms(head: nn.Linear) -> HeadNorms:
    """Norms of a linear head's weight; `LinearHead.of(model).layer` finds it."""
    weight = at_least_float32(head.weight.detach()).cpu().double()
    rows = weight.norm(dim=1)
    bias = 0.0 if head.bias is None else head.bias.detach().double().norm().item()
    return HeadNorms(rows.norm().item(), rows.float(), bias)


def residual(logits: Tensor, y: Tensor) -> Tensor:
    """delta_i = e_y - softmax(z), minus the cross-entropy's gradient in the logits, (N, C).

    Tomihari & Sato 2024 (arXiv:2405.16747), proposition 4.1: a step of gradient descent changes the
    model by sums over these.

    Args:
        logits: z, (N, C).
        y: labels (N,), int64.
    """
    check_labels(y, logits)
    logits = at_least_float32(logits)
    return one_hot(y, logits.shape[1]).to(logits.dtype) - logits.softmax(1)


def residual_size(logits: Tensor, y: Tensor) -> Tensor:
    """||e_y - softmax(z)||_2 of each sample, (N,): from 0, all right, to sqrt(2), surely wrong.

    Args:
        logits: z, (N, C).
        y: labels (N,), int64.
    """
    return residual(logits, y).norm(dim=1)


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """How strongly each sample's margin m = z_y - max_{k != y} z_k depends on its input.

    Args:
        norm: of the perturbations.
        samples: ||d m / d x||_q, (N,) on the CPU; the head's difference v_y - v_k through the
            features' Jacobian.
        margins: m, (N,): above 0 where a sample is right.
    """

    norm: str
    samples: Tensor = field(repr=False)
    margins: Tensor = field(repr=False)

    @property
    def mean(self) -> float:
        """Mean over the samples."""
        return self.samples.double().mean().item()

    @property
    def radii(self) -> Tensor:
        """margin / sensitivity, (N,): how far the boundary is to first order, below 0 where a
        sample is wrong; 0 / 0 is NaN."""
        return self.margins / self.samples


def margin_sensitivity(
    model: nn.Module | LinearHead,
    batches: Iterable[Batch],
    norm: str,
    *,
    engine: Engine | None = None,
) -> Sensitivity:
    """||(v_y - v_k) d phi / d x||_q of each sample, k the runner-up: the likeliest wrong class.

    To first order a perturbation of size r moves the margin by at most r times this.

    Args:
        model: images (B, ...) -> logits (B, C), or the view of it; the head need not be linear.
        batches: (x, y, ids) on the model's device.
        norm: of the perturbations, one of `NORMS`; q is that of its dual.
        engine: how the passes are made.

    Raises:
        ArgumentError: another norm, or no images.
    """
    measure = NORMS[norm].dual
    slopes: list[Tensor] = []
    margins: list[Tensor] = []
    network = model.model if isinstance(model, LinearHead) else model
    with InputGradient(bound(network, engine), margin) as gradient:
        for x, y, _ids in batches:
            grad, loss, _logits = gradient(x, y)
            slopes.append(measure(grad).cpu())
            margins.append(-loss.cpu())
    if not sum(map(len, slopes)):
        raise ArgumentError(describe("batches", "at least one image", "none"))
    return Sensitivity(norm, torch.cat(slopes), torch.cat(margins))


def _ratio(above: float, below: float) -> float:
    if below == 0:
        return math.nan if above == 0 else math.inf
    return above / below


def _matrix(value: Tensor) -> Tensor:
    """As fp64 on the CPU."""
    if value.ndim != 2:
        fix = "Pool over tokens or pixels."
        raise ArgumentError(describe("features", "a matrix (N, D)", tuple(value.shape), fix))
    return value.detach().cpu().double()
