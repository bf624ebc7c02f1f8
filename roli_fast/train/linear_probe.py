"""A clean linear probe at once: the features of all images, kept, and the best head on them, by
multinomial logistic regression with an L2 penalty.
"""

import logging
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from roli_fast.data import ImageDataset
from roli_fast.errors import ArgumentError, describe
from roli_fast.files import write_json
from roli_fast.models import save_head, save_model
from roli_fast.train.context import Context, counter
from roli_fast.train.stage import Job, StageResult

RATED = 512
"""Training images whose features choose a rate."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Solution:
    """A head, fp64 on the CPU: `weight` (C, D), `bias` (C,); `converged` where the iterations were
    enough."""

    strength: float
    weight: Tensor
    bias: Tensor
    iterations: int
    converged: bool

    def score(self, features: Tensor, y: Tensor) -> tuple[float, float]:
        """Share of (N, D) features that are classified right, and their mean cross-entropy."""
        logits = features.double() @ self.weight.T + self.bias
        right = (logits.argmax(1) == y).double().mean()
        return right.item(), cross_entropy(logits, y).item()


def solve(
    features: Tensor,
    y: Tensor,
    classes: int,
    strengths: Sequence[float],
    *,
    iterations: int = 500,
    tolerance: float = 1e-6,
    watch: Callable[[], object] = lambda: None,
) -> list[Solution]:
    """The minimum of the mean cross-entropy of `features @ W.T + b` plus strength / 2 ||W||_F^2 at
    each strength, the strongest first, where each is a good start for the next.

    Args:
        features: (N, D) on the CPU.
        y: (N,) int64 classes.
        classes: how many there are, C.
        strengths: of the penalty, > 0; the bias is free.
        iterations: the most for a strength.
        tolerance: largest entry of the gradient at a solution.
        watch: called before each strength; may raise to stop.

    Raises:
        ArgumentError: a class without images, whose bias would fall without end.
    """
    from sklearn.exceptions import ConvergenceWarning  # here: other stages go without scikit-learn
    from sklearn.linear_model import LogisticRegression

    absent = (torch.bincount(y, minlength=classes) == 0).nonzero().flatten().tolist()
    if absent:
        got = f"none of class {', '.join(map(str, absent[:5]))}"
        raise ArgumentError(
            describe("y", "training images of every class", got, "Leave the class out.")
        )
    mean = features.double().mean(0)  # centred features take fewer iterations
    centred = (features.double() - mean).numpy()
    # for two classes sklearn has one vector, the difference of ours: half its square is penalised
    pair = 2 if classes == 2 else 1
    found = []
    solver = LogisticRegression(max_iter=iterations, tol=tolerance, warm_start=True)
    for strength in sorted(strengths, reverse=True):
        watch()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            solver.set_params(C=pair / (strength * len(y))).fit(centred, y.numpy())
        weight, bias = torch.from_numpy(solver.coef_), torch.from_numpy(solver.intercept_)
        if pair == 2:
            weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
        steps = int(solver.n_iter_[0])
        shifted = bias - weight @ mean
        found.append(Solution(strength, weight.clone(), shifted, steps, steps < iterations))
    return found


def solve_stage(job: Job, context: Context) -> StageResult:
    """Run a stage whose optimiser is lbfgs; the model ends with the chosen head, that of highest
    validation accuracy, of equals of lowest validation loss.

    One forward for each training and validation image, in eval mode and without augmentation; the
    features are kept, N x D numbers of the model's type. Several processes share the forwards, and
    the first solves. A stop before the end leaves nothing behind: the stage begins again.

    Raises:
        ArgumentError: a class without training images.
        InterruptedRunError: a signal came.
        OutOfMemoryError: a batch of the stage's size does not fit.
    """
    stage, model, split = job.stage, job.model, job.splits
    stage.prepare(model, seed=job.seed)
    context.recorder.forget(job.stage_id, 0)
    started = time.perf_counter()
    total = len(split.train) + len(split.val)
    with context.bar(context.remaining.title(job.stage_id), total=total) as bar:
        move = counter(bar, context.distributed.world_size)
        train, val = (_features(job, part, context, move) for part in (split.train, split.val))
    rows: list[dict[str, float]] = []
    chosen = 0
    if context.distributed.is_main:
        strengths, iterations = stage.optimizer.strengths, stage.optimizer.iterations
        y, classes, watch = split.train.labels, split.num_classes, context.interrupt.check
        found = solve(train, y, classes, strengths, iterations=iterations, watch=watch)
        rows = [_row(one, train, val, job) for one in found]
        scores = [(row["validation_accuracy"], -row["validation_nll"]) for row in rows]
        chosen = scores.index(max(scores))
        with torch.no_grad():
            model.head.weight.copy_(found[chosen].weight)
            if model.head.bias is not None:
                model.head.bias.copy_(found[chosen].bias)
    rows, chosen = context.distributed.broadcast((rows, chosen))
    context.distributed.broadcast_(model.head.parameters())
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return _write(job, context, rows, chosen, time.perf_counter() - started)


def rated(job: Job, context: Context) -> Job:
    """The job with the rate that null stands for (`Optimizer`), from up to `RATED` images.

    Cross-entropy's second derivative by the head's weights is at most half the features' squared
    norm, so what a rate does to a prediction is in proportion to it.
    """
    stage, split = job.stage, job.splits.train
    if stage.optimizer.lr is not None:
        return job
    count = min(RATED, len(split))
    some = split.subset(torch.arange(count) * len(split) // count)
    norm = _features(job, some, context).double().square().sum(1).mean()
    rate = float(f"{1 / norm.clamp(min=1e-12):.2g}")
    text = "stage '%s': the rate is %g, 1 over the features' mean squared norm"
    logger.info(text, job.name, rate)
    return replace(job, stage=replace(stage, optimizer=replace(stage.optimizer, lr=rate)))


def _features(
    job: Job, part: ImageDataset, context: Context, move: Callable[[int], None] = lambda _: None
) -> Tensor:
    """(N, D) of a split on the CPU, in its order."""
    stage, model, world = job.stage, job.model, context.distributed.world_size
    out: list[Tensor] = []
    model.eval()
    with stage.memory_guard(job.name, context.device), torch.no_grad():
        for batch in context.evaluation_batches(part, stage.part_size(world)):
            out.append(model.features(batch.x).cpu())
            move(len(batch.y))
            context.check()
    return context.put_together(torch.cat(out), part)


def _row(found: Solution, train: Tensor, val: Tensor, job: Job) -> dict[str, float]:
    accuracy, nll = found.score(val, job.splits.val.labels)
    return {
        "strength": found.strength,
        "head_norm": float(torch.linalg.norm(found.weight)),
        "validation_accuracy": accuracy,
        "validation_nll": nll,
        "train_loss": found.score(train, job.splits.train.labels)[1],
        "iterations": found.iterations,
        "converged": found.converged,
    }


def _write(
    job: Job, context: Context, rows: list[dict[str, float]], chosen: int, seconds: float
) -> StageResult:
    """The files of a finished stage, and its result; `chosen` is the best row's index."""
    row = rows[chosen]
    text = "stage '%s': strength %g of %d, head norm %.3g, validation %.1f %%, %d iterations"
    shown = (row["strength"], len(rows), row["head_norm"], 100 * row["validation_accuracy"])
    logger.info(text, job.name, *shown, row["iterations"])
    if len(rows) > 1 and chosen in (0, len(rows) - 1):
        end = "weakest" if chosen else "strongest"
        logger.info("stage '%s': that is the %s; others may be better", job.name, end)
    if not row["converged"]:
        text = "stage '%s': not yet at the minimum after %d iterations; raise optimizer.iterations"
        logger.warning(text, job.name, row["iterations"])
    images = len(job.splits.train)
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
    values = {name: row[name] for name in ("train_loss", "validation_nll", "strength", "head_norm")}
    values["validation_clean_accuracy"] = row["validation_accuracy"]
    values["train_images_per_second"] = result.train_images_per_second
    context.recorder.add(job.stage_id, 0, values)
    if context.distributed.is_main:
        save_model(job.model, job.folder / "best.safetensors", classes=job.splits.classes)
        save_head(job.model, job.folder / "head.safetensors")
        write_json(job.folder / "result.json", asdict(result))
    return context.distributed.broadcast(result)  # which the others wait for, and the files with it
