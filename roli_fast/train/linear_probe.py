"""A clean linear probe at once: the features of all images, kept, and the best head on them, by
multinomial logistic regression with an L2 penalty.
"""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.nn.functional import log_softmax, one_hot
from tqdm import tqdm

from roli_fast.data import ImageDataset
from roli_fast.errors import ArgumentError, describe
from roli_fast.files import write_json
from roli_fast.models import save_head, save_model
from roli_fast.threat import check_positive
from roli_fast.train.context import Context, counter
from roli_fast.train.stage import Job, StageResult

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


logger = logging.getLogger(__name__)


def solve_stage(job: Job, context: Context) -> StageResult:
    """Run a stage whose optimiser is lbfgs; the model ends with the chosen head.

    One forward for each training and validation image, in eval mode and without augmentation; the
    features are kept, N x D numbers of the model's type. Several processes share the forwards, and
    the first solves. A stop before the end leaves nothing behind: the stage begins again.

    Raises:
        ArgumentError: features that are not finite, or a class without training images.
        InterruptedRunError: a signal came.
        OutOfMemoryError: a batch of the stage's size does not fit.
    """
    job.stage.prepare(job.model, seed=job.seed)
    context.recorder.forget(job.place, 0)
    started = time.perf_counter()
    split = job.splits
    title = "seed {seed} {method}/{stage}".format(**job.place)
    logger.info("stage '%s': %s", job.name, _cost(job))
    with context.bar(title, total=len(split.train) + len(split.val)) as bar:
        train, val = (_features(job, part, context, bar) for part in (split.train, split.val))
    solutions: list[Solution] = []
    if context.team.leads:
        solutions = _solve(job, context, train)
    rows = [_row(found, val, split.val.labels) for found in solutions]
    rows = context.team.from_first(rows)
    chosen = best([(row["validation_accuracy"], row["validation_nll"]) for row in rows])
    if solutions:
        _put(job, solutions[chosen])
    context.team.copy_first_(job.model.head.parameters())
    for parameter in job.model.parameters():
        parameter.requires_grad_(True)
    seconds = time.perf_counter() - started
    return _write(job, context, rows, chosen, seconds)


def _features(job: Job, part: ImageDataset, context: Context, bar: tqdm) -> Tensor:
    """(N, D) of a split on the CPU, in its order."""
    stage, model, world = job.stage, job.model, context.team.world
    move = counter(bar, world)
    out: list[Tensor] = []
    model.eval()
    with stage.memory_guard(job.name, context.device):
        for batch in context.evaluation_batches(part, stage.part_size(world)):
            with torch.no_grad():
                out.append(model.features(batch.x).cpu())
            move(len(batch.y))
            context.check()
    return context.put_together(torch.cat(out), part)


def _cost(job: Job) -> str:
    """What the stage will do and hold."""
    head, stage, split = job.model.head.weight, job.stage, job.splits
    images, width = len(split.train) + len(split.val), head.shape[1]
    megabytes = images * width * head.element_size() / 1e6
    tried = len(stage.optimizer.strengths) or 1
    kept = f"features of {images} images x {width} kept, {megabytes:.1f} MB"
    return f"{kept}; {tried} strengths of at most {stage.optimizer.iterations} iterations"


def _solve(job: Job, context: Context, features: Tensor) -> list[Solution]:
    """One solution a strength, from the strongest on, each begun where the last ended."""
    own = job.stage.optimizer
    features = features.to(context.device)
    y = job.splits.train.labels.to(context.device)
    problem = LogisticRegression(features, y, job.splits.num_classes)
    solutions: list[Solution] = []
    for strength in strongest_first(own.strengths or (own.weight_decay,)):
        start, watch = solutions[-1] if solutions else None, context.interrupt.check
        found = problem.solve(strength, start=start, iterations=own.iterations, watch=watch)
        solutions.append(found)
    return solutions


def _row(found: Solution, features: Tensor, y: Tensor) -> dict[str, float]:
    device = found.weight.device
    accuracy, nll = score(found, features.to(device), y.to(device))
    return {
        "strength": found.strength,
        "head_norm": found.norm,
        "validation_accuracy": accuracy,
        "validation_nll": nll,
        "train_loss": found.loss,
        "iterations": found.iterations,
        "converged": found.converged,
    }


def _put(job: Job, found: Solution) -> None:
    head = job.model.head
    with torch.no_grad():
        head.weight.copy_(found.weight)
        if head.bias is not None:
            head.bias.copy_(found.bias)


def _write(
    job: Job, context: Context, rows: list[dict[str, float]], chosen: int, seconds: float
) -> StageResult:
    """The files of a finished stage, and its result."""
    row, images = rows[chosen], len(job.splits.train)
    _tell(job, rows, chosen)
    values = {
        "train_loss": row["train_loss"],
        "validation_clean_accuracy": row["validation_accuracy"],
        "validation_nll": row["validation_nll"],
        "strength": row["strength"],
        "head_norm": row["head_norm"],
        "train_images_per_second": images / seconds,
    }
    context.recorder.add(job.place, 0, values)
    result = StageResult(
        name=job.name,
        epochs=1,
        best_epoch=0,
        best_validation_accuracy=row["validation_accuracy"],
        trainable_parameters=sum(p.numel() for p in job.model.head.parameters()),
        train_images=images,
        train_seconds=seconds,
        train_images_per_second=images / seconds,
        strength=row["strength"],
        head_norm=row["head_norm"],
        strengths=rows,
    )
    if context.team.leads:
        save_model(job.model, job.folder / "best.safetensors", classes=job.splits.classes)
        save_head(job.model, job.folder / "head.safetensors")
        write_json(job.folder / "result.json", asdict(result))
    return context.team.from_first(result)  # which the others wait for, and the files with it


def _tell(job: Job, rows: list[dict[str, float]], chosen: int) -> None:
    """What was chosen, and what may be wrong with it."""
    row = rows[chosen]
    text = "stage '%s': strength %g of %d, head norm %.3g, validation %.1f %%, %d iterations"
    accuracy, steps = 100 * row["validation_accuracy"], row["iterations"]
    logger.info(text, job.name, row["strength"], len(rows), row["head_norm"], accuracy, steps)
    if len(rows) > 1 and chosen in (0, len(rows) - 1):
        weakest = "weakest" if chosen else "strongest"
        logger.info("stage '%s': that is the %s; others may be better", job.name, weakest)
    if not row["converged"]:
        text = "stage '%s': not yet at the minimum after %d iterations; raise optimizer.iterations"
        logger.warning(text, job.name, steps)
