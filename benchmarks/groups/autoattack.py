"""Full AutoAttack on one network, beside the same attacks written the usual way.

    pip install --no-deps torchattacks
    python benchmarks/autoattack.py MODEL --data image_folder --root cifar10 --images 200

Every candidate attacks its own survivors, part after part (APGD-CE, APGD-T, FAB-T, Square, each
with the published 100 steps or 5000 queries), batch by batch with the candidates interleaved in one
process. "usual" is torchattacks, whose code equals the authors' bit for bit, with weights frozen
as ours are, so that the difference is the attack's own work. "full batch" is ours where fooled
images stay in the batch; "bf16" searches in bfloat16, checks in fp32 and keeps what still fools.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timing
import torch
from torch import Tensor, nn

from roli_fast import models
from roli_fast.attacks import Attack, AutoAttack
from roli_fast.attacks.objective import is_right
from roli_fast.attacks.recheck import search
from roli_fast.data import DATASETS
from roli_fast.engine import SearchModel

EPS = {"linf": 8 / 255, "l2": 0.5}
Search = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x, y, ids) -> adversarial images."""


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


def ours(model: nn.Module | SearchModel, part: Attack, **options: Any) -> Search:
    """Our attack; `options` replace its fields where it has them."""
    known = {field.name for field in dataclasses.fields(part)}  # type: ignore[arg-type]
    part = dataclasses.replace(part, **{k: v for k, v in options.items() if k in known})  # type: ignore[type-var]

    def run(x: Tensor, y: Tensor, ids: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return search(part, model, x, y, generator, sample_ids=ids).result.x_adv

    return run


def usual(model: nn.Module, norm: str) -> list[Search]:
    """The four attacks of torchattacks, on frozen weights, with the published steps."""
    import torchattacks as peer

    common: dict[str, Any] = {"norm": {"linf": "Linf", "l2": "L2"}[norm], "eps": EPS[norm]}
    attacks = [
        peer.APGD(model, **common, steps=100, loss="ce"),
        peer.APGDT(model, **common, steps=100, n_classes=10),
        peer.FAB(model, **common, steps=100, multi_targeted=True, n_classes=10),
        peer.Square(model, **common, n_queries=5000, resc_schedule=False),
    ]
    return [lambda x, y, _ids, attack=attack: attack(x, y) for attack in attacks]


def candidates(model: nn.Module, norm: str) -> dict[str, tuple[nn.Module, list[Search]]]:
    """Name -> (the module whose passes are counted, its four searches)."""
    parts = AutoAttack(norm=norm, eps=EPS[norm]).parts
    made: dict[str, tuple[nn.Module, list[Search]]] = {}
    plain, full, low, other = (Counted(model).eval() for _ in range(4))
    made["roli_fast"] = plain, [ours(plain, part) for part in parts]
    made["usual"] = other, usual(other, norm)
    made["full batch"] = full, [ours(full, part, compact=False) for part in parts]
    short = SearchModel(low, dtype=torch.bfloat16)
    made["bf16"] = low, [ours(short, part) for part in parts]
    return made


def attack(model: nn.Module, batches: list[tuple[Tensor, Tensor, Tensor]], norm: str) -> Any:
    """Seconds, passes and flags of every candidate and part."""
    made = candidates(model, norm)
    names = [part.label for part in AutoAttack(norm=norm, eps=EPS[norm]).parts]
    seconds = {name: [[0.0] * len(names) for _ in batches] for name in made}
    passes = {name: [0] * len(names) for name in made}
    robust: dict[str, list[list[bool]]] = {name: [] for name in made}
    left_after = {name: [0] * len(names) for name in made}
    for number, (x, y, ids) in enumerate(batches):
        with torch.no_grad():
            right = is_right(model(x), y)
        left = {name: right.clone() for name in made}
        for place, part in enumerate(names):
            for name, (counted, searches) in made.items():
                rows = left[name].nonzero()[:, 0]
                before, started = counted.images, time.perf_counter()  # type: ignore[attr-defined]
                x_adv = searches[place](x[rows], y[rows], ids[rows])
                with torch.no_grad():  # by the full-precision model, whatever searched
                    left[name][rows] = is_right(model(x_adv), y[rows])
                seconds[name][number][place] = time.perf_counter() - started
                passes[name][place] += counted.images - before  # type: ignore[attr-defined]
                left_after[name][place] += int(left[name].sum())
                print(
                    f"{norm} batch {number} {part:14}{name:12}"
                    f"{seconds[name][number][place]:8.1f} s, {int(left[name].sum())} left",
                    flush=True,
                )
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
            "seconds": round(sum(map(sum, rows)), 1),
            "times_ours": round(sum(map(sum, rows)) / mine, 3),
            "by_part": [round(sum(column), 1) for column in zip(*rows, strict=True)],
            "robust_accuracy": sum(flags) / images,
            "flags_unlike_ours": differ,
        }
    return out


def load(args: argparse.Namespace) -> list[tuple[Tensor, Tensor, Tensor]]:
    """The first images of the test split, class by class mixed."""
    source = DATASETS[args.data](root=args.root, image_size=args.size)  # type: ignore[call-arg]
    test = source.load().test
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))[: args.images]
    return [tuple(test.plain().batch(rows)) for rows in order.split(args.batch)]  # type: ignore[misc]


def main() -> None:
    """Run, print, write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="a best.safetensors of roli_fast.train")
    parser.add_argument("--data", default="image_folder")
    parser.add_argument("--root", required=True)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--norms", default="linf,l2")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = models.load(args.model).eval().requires_grad_(False)
    batches = load(args)
    report: dict[str, Any] = {"machine": timing.machine("cpu", args.threads)}
    report["case"] = {"images": args.images, "batch": args.batch, "eps": EPS}
    for norm in args.norms.split(","):
        result = attack(model, batches, norm)
        report[norm] = {**conclude(result, args.images), "details": result}
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        print(json.dumps(report[norm] | {"details": ""}, indent=1))


if __name__ == "__main__":
    main()
