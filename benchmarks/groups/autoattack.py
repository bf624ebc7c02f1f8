r"""Full AutoAttack on one network, beside the same attacks written the usual way.

Every candidate attacks its own survivors, part after part (APGD-CE, APGD-T, FAB-T, Square, each
with the published 100 steps or 5000 queries), batch by batch with the candidates interleaved in one
process. "usual" is torchattacks, whose code equals the authors' bit for bit, with weights frozen
as ours are, so that the difference is the attack's own work. "full batch" is ours where fooled
images stay in the batch; "bf16" searches in bfloat16, checks in fp32 and keeps what still fools.

By itself it attacks a small network that it trains on digits first. For a real one:
    pytest benchmarks --benchmark-only -k autoattack --weights best.safetensors \
      --images_root cifar10 --images 200 --threads 1 --out benchmarks/results
writes results/autoattack-<device>.json, the digits' run autoattack-digits-<device>.json.
"""

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness import ours as passes_of
from harness import peers
from harness.networks import SmallCNN
from harness.report import Options, Report
from harness.timing import Times
from roli_fast import models
from roli_fast.attacks import PGD, Attack, AutoAttack
from roli_fast.attacks.base import AttackInputs
from roli_fast.attacks.objective import is_right
from roli_fast.attacks.recheck import search
from roli_fast.data import DATASETS
from roli_fast.data.digits import Digits

EPS = {"linf": 8 / 255, "l2": 0.5}
DIGITS_EPS = {"linf": 0.1}
BATCH = {"weights": 100, "digits": 48}
Search = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x, y, ids) -> adversarial images."""
Batches = list[tuple[Tensor, Tensor, Tensor]]


class Counted(nn.Module):
    """Counts the images that pass forwards."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.images = 0

    def forward(self, x: Tensor) -> Tensor:
        """The model's logits."""
        self.images += len(x)
        return self.model(x)


def ours(model: Any, part: Attack, **options: Any) -> Search:
    """Our attack; `options` replace its fields where it has them."""
    known = {field.name for field in dataclasses.fields(part)}  # type: ignore[arg-type]
    part = dataclasses.replace(part, **{k: v for k, v in options.items() if k in known})  # type: ignore[type-var]

    def run(x: Tensor, y: Tensor, ids: Tensor) -> Tensor:
        generator = torch.Generator(x.device).manual_seed(0)
        inputs = AttackInputs(model, x, y, generator, sample_ids=ids)
        return search(part, inputs).result.x_adv

    return run


def usual(model: nn.Module, norm: str, eps: float, quick: bool) -> list[Search]:
    """The four attacks of torchattacks, on frozen weights, with the published steps."""
    peer = peers.library("torchattacks", "torchattacks")
    common: dict[str, Any] = {"norm": {"linf": "Linf", "l2": "L2"}[norm], "eps": eps}
    steps, queries = (2, 5) if quick else (100, 5000)
    attacks = [
        peer.APGD(model, **common, steps=steps, loss="ce"),
        peer.APGDT(model, **common, steps=steps, n_classes=10),
        peer.FAB(model, **common, steps=steps, multi_targeted=True, n_classes=10),
        peer.Square(model, **common, n_queries=queries, resc_schedule=False),
    ]
    return [lambda x, y, _ids, attack=attack: attack(x, y) for attack in attacks]


def parts_of(norm: str, eps: float, quick: bool) -> list[Attack]:
    """The four attacks of ours."""
    found = list(AutoAttack(norm=norm, eps=eps).parts)
    if not quick:
        return found
    fewer = {"steps": 2, "queries": 5}
    return [
        dataclasses.replace(part, **{k: v for k, v in fewer.items() if hasattr(part, k)})  # type: ignore[type-var]
        for part in found
    ]


def candidates(
    model: nn.Module, norm: str, eps: float, report: Report
) -> dict[str, tuple[Counted, list[Search]]]:
    """Name -> (the module whose passes are counted, its four searches)."""
    quick = report.options.quick
    parts = parts_of(norm, eps, quick)
    made: dict[str, tuple[Counted, list[Search]]] = {}
    plain, full, low, other = (Counted(model).eval() for _ in range(4))
    made["roli_fast"] = plain, [ours(plain, part) for part in parts]
    try:
        made["usual"] = other, usual(other, norm, eps, quick)
    except peers.Missing as reason:
        report.add_row({"case": norm, "name": "usual", "note": str(reason)})
    made["full batch"] = full, [ours(full, part, compact=False) for part in parts]
    short = passes_of.bound(low, {"dtype": torch.bfloat16})
    made["bf16"] = low, [ours(short, part) for part in parts]
    return made


def attack(model: nn.Module, batches: Batches, norm: str, eps: float, report: Report) -> Any:
    """Seconds, passes and flags of every candidate and part."""
    made = candidates(model, norm, eps, report)
    names = [part.label for part in AutoAttack(norm=norm, eps=eps).parts]
    seconds = {name: [[0.0] * len(names) for _ in batches] for name in made}
    passes = {name: [0] * len(names) for name in made}
    robust: dict[str, list[list[bool]]] = {name: [] for name in made}
    left_after = {name: [0] * len(names) for name in made}
    for number, (x, y, ids) in enumerate(batches):
        with torch.no_grad():
            right = is_right(model(x), y)
        left = {name: right.clone() for name in made}
        for place in range(len(names)):
            for name, (counted, searches) in made.items():
                rows = left[name].nonzero()[:, 0]
                before, started = counted.images, time.perf_counter()
                x_adv = searches[place](x[rows], y[rows], ids[rows]) if len(rows) else x[rows]
                with torch.no_grad():  # by the full-precision model, whatever searched
                    left[name][rows] = is_right(model(x_adv), y[rows])
                seconds[name][number][place] = time.perf_counter() - started
                passes[name][place] += counted.images - before
                left_after[name][place] += int(left[name].sum())
        for name in made:
            robust[name].append(left[name].tolist())
    return {
        "parts": names,
        "seconds": seconds,
        "forward_images": passes,
        "left_after": left_after,
        "robust": {name: sum(flags, []) for name, flags in robust.items()},
    }


def conclude(result: dict[str, Any], images: int) -> dict[str, Any]:
    """Totals, ratios to ours, and the flags that differ."""
    out: dict[str, Any] = {}
    mine = sum(map(sum, result["seconds"]["roli_fast"]))
    for name, rows in result["seconds"].items():
        flags = result["robust"][name]
        differ = sum(a != b for a, b in zip(flags, result["robust"]["roli_fast"], strict=True))
        out[name] = {
            "seconds": round(sum(map(sum, rows)), 3),
            "times_ours": round(sum(map(sum, rows)) / mine, 3),
            "by_part": [round(sum(column), 3) for column in zip(*rows, strict=True)],
            "robust_accuracy": sum(flags) / images,
            "flags_unlike_ours": differ,
        }
    return out


def small_network(quick: bool) -> tuple[nn.Module, Any]:
    """A network trained by PGD on digits, some seconds, and their test images."""
    splits = Digits(image_size=16).load()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = SmallCNN(size=16)
    batch = splits.train.plain().batch(torch.arange(len(splits.train)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    radius = DIGITS_EPS["linf"]
    search = PGD(eps=radius, step_size=radius / 3, steps=5)
    generator = torch.Generator().manual_seed(0)
    for epoch in range(8 if quick else 60):
        for rows in torch.randperm(len(batch.y), generator=generator).split(128):
            x, y = batch.x[rows], batch.y[rows]
            if epoch >= 8:  # attacked from the start it would learn nothing
                x = search(model, x, y, generator)
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval().requires_grad_(False), splits.test


def subject(options: Options) -> tuple[nn.Module, Batches, dict[str, float]]:
    """Network, images class by class mixed, and radii."""
    if options.weights:
        model = models.load(options.weights).eval().requires_grad_(False)
        test = DATASETS["image_folder"](root=options.root, image_size=32).load().test  # type: ignore[call-arg]
        eps, count, size = EPS, options.images, BATCH["weights"]
    else:
        model, test = small_network(options.quick)
        eps, count, size = DIGITS_EPS, 8 if options.quick else 2 * BATCH["digits"], BATCH["digits"]
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))[:count]
    batches = [test.plain().batch(rows) for rows in order.split(size)]
    device = options.device
    moved = [(b.x.to(device), b.y.to(device), b.ids.to(device)) for b in batches]
    return model.to(device), moved, eps


def run(norm: str, report: Report) -> None:
    """A row for each candidate."""
    model, batches, eps = subject(report.options)
    if norm not in eps:
        report.add_row({"case": norm, "name": "-", "note": "with --weights alone"})
        return
    images = sum(len(y) for _, y, _ in batches)
    report.case |= {"images": images, "batch": len(batches[0][1]), "eps": eps}
    report.case["data"] = Path(report.options.root).name if report.options.root else "digits"
    result = attack(model, batches, norm, eps[norm], report)
    found = conclude(result, images)
    report.extra[norm] = {**found, "details": result}
    for name, one in found.items():
        report.add_row(
            {
                "case": f"{report.case['data']}, {norm}",
                "name": name,
                "ms": round(1e3 * one["seconds"], 1),
                "base": "roli_fast",
                "times_base": one["times_ours"],
                "batches": len(batches),
                "note": f"robust {100 * one['robust_accuracy']:.1f} %",
            }
        )
    seconds = {name: [one["seconds"]] for name, one in found.items()}
    report.timed = Times(seconds), "roli_fast"


CASES = {norm: partial(run, norm) for norm in EPS}
