"""What each analysis takes on one model of a run, beside a forward: interleaved, on one thread."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from harness.report import rounded
from harness.timing import SHORTEST, Plan, measure, seconds
from roli_fast import analysis
from roli_fast.analysis import calibration
from roli_fast.data import Batch, batches
from roli_fast.models import Classifier
from roli_fast.peft import LoRA
from roli_fast.train import Experiment
from roli_fast.train.starting import trained_model

KERNEL_ROWS = 300
"""N x C of the kernels that are built, about."""

FEW = 20
"""Images with fewer of which no regression on the kernel is worth timing."""

Case = tuple[str, Callable[[], object]]
"""What an analysis is made on, and the call."""


def measured(experiment: Experiment, folder: Path, *, quick: bool = False) -> list[dict[str, Any]]:
    """A row for each analysis of RoLI's final model of the first seed, on validation images."""
    splits, seed, method = experiment.data.load(), experiment.seeds[0], "roli"
    number = len(experiment.stages(method))
    model = trained_model(experiment, splits, seed, method, number, folder).eval()
    loaded = list(batches(splits.val, batch_size=50, seed=0, epoch=0, shuffle=False))
    images = [batch for batch in loaded if len(batch.y) == 50][: 1 if quick else 4] or loaded[:1]
    cases = listed(model, images, experiment)
    calls = {name: call for name, (_, call) in cases.items()}
    calls |= {"": lambda: _forward(model, images)}
    taken = {name: (call(), seconds(call, 1, "cpu"))[1] for name, call in calls.items()}
    repeats = {name: max(1, round(SHORTEST / own)) for name, own in taken.items()}
    plan = Plan(least=1 if quick else 3, most=1 if quick else 7, budget=30)
    times = measure(calls, plan, "cpu", repeats)
    forward = (times.median("") or 0.0) / sum(len(batch.y) for batch in images)
    rows = [{"analysis": "a forward", "on": "an image", "seconds": rounded(forward)}]
    for name, (what, _) in cases.items():
        rows.append({"analysis": name, "on": what, "seconds": rounded(times.median(name))})
    return rows


@torch.no_grad()
def _forward(model: Classifier, images: list[Batch]) -> None:
    for batch in images:
        model(batch.x)


def listed(model: Classifier, images: list[Batch], experiment: Experiment) -> dict[str, Case]:
    """The analyses, by name."""
    head = analysis.LinearHead.of(model)
    attack = experiment.test.under(experiment.threat)
    seen = analysis.gather(model, images)
    count, test = len(seen), (seen.logits, seen.y)
    update = analysis.one_step(model, images, images, lr=1e-3 / count).tangent
    optimize, norm = experiment.finetune.optimizer.build, experiment.threat.norm
    calls: dict[str, Callable[[], object]] = {
        "features": lambda: analysis.gather(model, images),
        f"features under {attack.label}": lambda: analysis.gather(model, images, attack),
        "margin sensitivity": lambda: analysis.margin_sensitivity(model, images, norm),
        "FT ratio and SGD's first step": lambda: analysis.one_step(
            model, images, images, lr=1e-3 / count
        ),
        "the optimiser's first step": lambda: analysis.first_update(model, images, optimize),
        "a step made": lambda: analysis.actual_change(model, update, images),
        "head times 0.1, 1, 10": lambda: analysis.head_scale(
            model, images, images, lr=1e-3 / count
        ),
    }
    return {
        "head norms": ("the head", lambda: analysis.head_norms(head.layer)),
        "drift and CKA": ("cached", lambda: analysis.feature_drift(seen.features, seen.features)),
        "calibration, two temperatures": (
            "cached",
            lambda: calibration.report(test, test, test, test),
        ),
        **{name: (f"{count} images", call) for name, call in calls.items()},
        **_kernels(model, images, head.classes),
    }


def _kernels(model: Classifier, images: list[Batch], classes: int) -> dict[str, Case]:
    """Of few images, for they grow with the square of images times classes."""
    count = max(2, KERNEL_ROWS // classes)
    x, y = (torch.cat([getattr(batch, name) for batch in images])[:count] for name in "xy")
    some, method = f"{len(x)} images, {classes} classes", LoRA(rank=4)
    cases: dict[str, Case] = {
        "empirical NTK": (some, lambda: analysis.empirical_ntk(model, x)),
        "LoRA's kernel, 4 draws": (some, lambda: analysis.lora_kernel(model, method, x, draws=4)),
    }
    if len(x) >= FEW:
        kernel = analysis.empirical_ntk(model, x).matrix()
        call = lambda: analysis.kernel_regression(kernel, y, kernel, y)  # noqa: E731
        cases["kernel regression"] = (some, call)
    return cases


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown of the rows."""
    lines = ["| analysis | on | measured, s |", "|---|---|---|"]
    lines += [f"| {row['analysis']} | {row['on']} | {row['seconds']:.2g} |" for row in rows]
    return "\n".join(lines)
