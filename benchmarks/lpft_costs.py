"""What each analysis was predicted to cost, beside what it took, on one model of a run.

The prediction is the analysis's own `..._cost`: passes in forwards (a backward to the input counts
one, to the weights two, a Jacobian product two) times a measured forward, and floating-point
operations besides at the rate of a measured matrix product. All are timed interleaved, on one
thread.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from harness.report import rounded
from harness.timing import SHORTEST, Plan, measure, seconds
from roli_fast import analysis
from roli_fast.analysis import calibration
from roli_fast.analysis.costs import Cost
from roli_fast.analysis.features import feature_drift_cost
from roli_fast.analysis.head import head_norms_cost
from roli_fast.analysis.head_scale import head_scale, head_scale_cost
from roli_fast.analysis.kernel_regression import kernel_regression, kernel_regression_cost
from roli_fast.analysis.lora_kernel import lora_kernel, lora_kernel_cost
from roli_fast.analysis.ntk import empirical_ntk, empirical_ntk_cost
from roli_fast.analysis.one_step import (
    actual_change,
    actual_change_cost,
    first_update,
    first_update_cost,
    one_step,
    one_step_cost,
)
from roli_fast.analysis.sensitivity import margin_sensitivity_cost
from roli_fast.analysis.view import LinearHead
from roli_fast.data import Batch, batches
from roli_fast.models import Classifier
from roli_fast.peft import LoRA
from roli_fast.train import Experiment
from roli_fast.train.starting import trained_model

SIDE = 512
"""Rows of the square product by which arithmetic is priced."""

KERNEL_ROWS = 300
"""N x C of the kernels that are built, about."""

FEW = 20
"""Images with fewer of which no regression on the kernel is worth timing."""


@dataclass(frozen=True)
class Case:
    """An analysis with its prediction; `what` is what it is made on."""

    what: str
    cost: Cost
    call: Callable[[], object]


def measured(experiment: Experiment, folder: Path, *, quick: bool = False) -> list[dict[str, Any]]:
    """A row for each analysis of RoLI's final model of the first seed, on validation images."""
    splits, seed, method = experiment.data.load(), experiment.seeds[0], "roli"
    number = len(experiment.stages(method))
    model = trained_model(experiment, splits, seed, method, number, folder).eval()
    loaded = list(batches(splits.val, batch_size=50, seed=0, epoch=0, shuffle=False))
    images = [batch for batch in loaded if len(batch.y) == 50][: 1 if quick else 4] or loaded[:1]
    cases = listed(model, images, experiment)
    left, right = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
    calls = {name: case.call for name, case in cases.items()}
    calls |= {"": lambda: _forward(model, images), "product": lambda: left @ right}
    taken = {name: (call(), seconds(call, 1, "cpu"))[1] for name, call in calls.items()}
    repeats = {name: max(1, round(SHORTEST / own)) for name, own in taken.items()}
    plan = Plan(least=1 if quick else 3, most=1 if quick else 7, budget=30)
    times = measure(calls, plan, "cpu", repeats)
    forward = (times.median("") or 0.0) / sum(len(batch.y) for batch in images)
    rate = 2 * SIDE**3 / (times.median("product") or 1.0)
    rows = [{"analysis": "a forward", "on": "an image", "seconds": rounded(forward)}]
    for name, case in cases.items():
        rows.append(
            {
                "analysis": name,
                "on": case.what,
                "cost": str(case.cost),
                "forward_units": case.cost.forward_units,
                "predicted_seconds": rounded(case.cost.seconds(forward, rate)),
                "seconds": rounded(times.median(name)),
            }
        )
    return rows


@torch.no_grad()
def _forward(model: Classifier, images: list[Batch]) -> None:
    for batch in images:
        model(batch.x)


def listed(model: Classifier, images: list[Batch], experiment: Experiment) -> dict[str, Case]:
    """The analyses, by name."""
    head = LinearHead.of(model)
    attack = experiment.test.under(experiment.threat)
    seen = analysis.gather(model, images)
    count, test = len(seen), (seen.logits, seen.y)
    update = one_step(model, images, images, lr=1e-3 / count).tangent
    optimize = experiment.finetune.optimizer.build
    some, cached = f"{count} images", "cached"
    return {
        "head norms": Case("the head", head_norms_cost(head.layer), lambda: _norms(head)),
        "features": Case(
            some, analysis.gather_cost(model, count), lambda: analysis.gather(model, images)
        ),
        f"features under {attack.label}": Case(
            some,
            analysis.gather_cost(model, count, attack),
            lambda: analysis.gather(model, images, attack),
        ),
        "drift and CKA": Case(
            cached,
            feature_drift_cost(*seen.features.shape),
            lambda: analysis.feature_drift(seen.features, seen.features),
        ),
        "calibration, two temperatures": Case(
            cached,
            calibration.report_cost(count, count, head.classes),
            lambda: calibration.report(test, test, test, test),
        ),
        "margin sensitivity": Case(
            some,
            margin_sensitivity_cost(count),
            lambda: analysis.margin_sensitivity(model, images, experiment.threat.norm),
        ),
        "FT ratio and SGD's first step": Case(
            some,
            one_step_cost(model, count, count),
            lambda: one_step(model, images, images, lr=1e-3 / count),
        ),
        "the optimiser's first step": Case(
            some,
            first_update_cost(model, count),
            lambda: first_update(model, images, optimize),
        ),
        "a step made": Case(
            some,
            actual_change_cost(count),
            lambda: actual_change(model, update, images),
        ),
        "head times 0.1, 1, 10": Case(
            some,
            head_scale_cost(model, count, count),
            lambda: head_scale(model, images, images, lr=1e-3 / count),
        ),
        **_kernels(model, images, head.classes),
    }


def _kernels(model: Classifier, images: list[Batch], classes: int) -> dict[str, Case]:
    """Of few images, for they grow with the square of images times classes."""
    count = max(2, KERNEL_ROWS // classes)
    x, y = (torch.cat([getattr(batch, name) for batch in images])[:count] for name in "xy")
    some, method = f"{len(x)} images, {classes} classes", LoRA(rank=4)
    cases = {
        "empirical NTK": Case(
            some, empirical_ntk_cost(model, len(x)), lambda: empirical_ntk(model, x)
        ),
        "LoRA's kernel, 4 draws": Case(
            some,
            lora_kernel_cost(model, method, len(x), draws=4),
            lambda: lora_kernel(model, method, x, draws=4),
        ),
    }
    if len(x) >= FEW:
        kernel = empirical_ntk(model, x).matrix()
        cases["kernel regression"] = Case(
            some,
            kernel_regression_cost(len(x), classes),
            lambda: kernel_regression(kernel, y, kernel, y),
        )
    return cases


def _norms(head: LinearHead) -> analysis.HeadNorms:
    return analysis.head_norms(head.layer)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown of the rows."""
    lines = [
        "| analysis | on | in forwards | predicted, s | measured, s |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        units, predicted = row.get("forward_units"), row.get("predicted_seconds")
        cells = [row["analysis"], row["on"], "" if units is None else f"{units:,.0f}"]
        cells += ["" if predicted is None else f"{predicted:.2g}", f"{row['seconds']:.2g}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
