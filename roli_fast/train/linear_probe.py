"""A clean linear probe at once: the features of all images, kept, and the best head on them."""

import logging
import time
from dataclasses import asdict

import torch
from torch import Tensor
from tqdm import tqdm

from roli_fast.data import ImageDataset
from roli_fast.files import write_json
from roli_fast.models import save_head, save_model
from roli_fast.train.context import Context, counter
from roli_fast.train.logistic import LogisticRegression, Solution, best, score, strongest_first
from roli_fast.train.stage import Job, StageResult

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
