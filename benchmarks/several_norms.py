"""Objectives for several norms beside each other: one robust network, fine-tuned with each.

    python benchmarks/several_norms.py --runs DIR --root CIFAR10 [--seeds 0,1,2]

A small ResNet is adversarially pretrained in linf on all images of a folder `CIFAR10/{train,test}/
<class>/`, then fine-tuned for three epochs with plain adversarial training in linf, E-AT, MAX and
RAMP, all on the same images and with the same attack steps, by the published settings (RAMP, arXiv:
2402.06827: SGD at 0.05, a tenth each third, decay of all tensors). It can be stopped and called
again; results/several-norms.json has the rows, the paired differences and the times of an update,
which are taken interleaved in one process.
"""

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

import runs
from harness.report import RESULTS
from harness.timing import Plan, Times, measure, warm
from roli_fast import files
from roli_fast.data import batches
from roli_fast.engine import Engine
from roli_fast.evaluate import evaluate
from roli_fast.models import load
from roli_fast.train import Experiment
from roli_fast.train.cli import parse
from roli_fast.train.objectives import EAT, Objective, Step

PATH = RESULTS / "several-norms.json"
NETWORK = (
    "--model.name resnet18 --model.options.layers [1,1,1,1] "
    "--model.options.channels [16,32,64,128] --model.mean 0.4914,0.4822,0.4465 "
    "--model.std 0.247,0.2435,0.2616"
).split()
THREAT = "--threat.eps 8/255 --threat.other_norms l2,l1 --threat.other_eps 0.5,12".split()
TEST = "--test apgd --test.steps 20 --validation.norm linf --validation.steps 5".split()
PRETRAIN = (
    "--methods scratch --pretrain.attack n-fgsm --pretrain.epochs 10 --pretrain.batch_size 128 "
    "--pretrain.optimizer.name adamw --pretrain.optimizer.lr 3e-3 --pretrain.clean_epochs 1 "
    "--pretrain.validate_every 5"
).split()
FINETUNE = (
    "--methods finetune --finetune.epochs 3 --finetune.batch_size 128 --finetune.warmup_epochs 0 "
    "--finetune.optimizer.name sgd --finetune.optimizer.lr 0.05 --finetune.optimizer.weight_decay "
    "5e-4 --finetune.optimizer.decay all --finetune.schedule step --finetune.select last "
    "--finetune.validate_every 3 --finetune.attack multi_apgd"
).split()
OBJECTIVES: dict[str, Sequence[str]] = {
    "AT-linf": ["--finetune.attack.norms", "linf"],
    "E-AT": ["--finetune.objective", "eat"],
    "MAX": [],
    "RAMP": "--finetune.objective ramp --finetune.objective.source linf "
    "--finetune.objective.target l1 --finetune.objective.weight 1.5".split(),
}
COLUMNS = ("clean", "linf", "l2", "l1", "union")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=Path, required=True, help="folder of the run directories")
    parser.add_argument("--root", required=True, help="CIFAR-10 as an image folder")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--images", type=int, default=300, help="a class, to fine-tune and to test")
    parser.add_argument("--table", action="store_true", help="print what was found, run nothing")
    return parser.parse_args()


def data(args: argparse.Namespace, images: int | None) -> list[str]:
    """Flags of the images."""
    own = ["--data", "image_folder", "--data.root", args.root, "--data.image_size", "32"]
    own += ["--data.val_fraction", "0.02", "--threads", "1"]
    return own + (["--data.max_per_class", str(images)] if images else [])


def flags(args: argparse.Namespace, start: Path, name: str) -> list[str]:
    """Flags of a fine-tuning run."""
    own = [*data(args, args.images), *NETWORK, *THREAT, *TEST, *FINETUNE, *OBJECTIVES[name]]
    return [*own, "--model.weights", str(start), "--seeds", args.seeds]


def row(folder: Path, own: list[str]) -> dict[str, Any]:
    """Accuracies of every seed, and each image's flags."""
    summary, _ = runs.summary(folder, own)
    tests = [json.loads(p.read_text()) for p in sorted(folder.glob("seed-*/finetune/test.json"))]
    found = {"clean": [test["clean_accuracy"] for test in tests]}
    for column in COLUMNS[1:]:
        found[column] = [test["robust_accuracy"][column] for test in tests]
    (stage,) = summary["methods"]["finetune"]["stages"]
    seen = {"clean": [test["clean_flags"] for test in tests]}
    seen |= {column: [test["robust_flags"][column] for test in tests] for column in COLUMNS[1:]}
    return {"accuracy": found, "flags": seen, "seconds_per_epoch": stage["train_seconds"] / 3}


def start_row(experiment: Experiment, start: Path) -> dict[str, Any]:
    """The network that all begin with, on the same test images."""
    split = experiment.data.load().test
    loaded = batches(split, batch_size=250, seed=0, epoch=0, shuffle=False)
    found = evaluate(load(start), loaded, experiment.evaluations("test"))
    values = found.robust_accuracy | {"clean": found.clean_accuracy, "union": found.union_accuracy}
    return {"accuracy": {column: [values[column]] for column in COLUMNS}, "images": len(split)}


def difference(a: list[str], b: list[str]) -> list[float]:
    """Mean and standard error over images, in points, of what differs in flags of equal seeds."""
    pairs = [
        [int(x) - int(y) for x, y in zip(first, second, strict=True)]
        for first, second in zip(a, b, strict=True)
    ]
    means = [statistics.mean(values) for values in zip(*pairs, strict=True)]
    error = statistics.stdev(means) / math.sqrt(len(means))
    return [100 * statistics.mean(means), 100 * error]


def draws(objective: Objective) -> list[float]:
    """One for each norm that can be drawn, all equally likely at the start. Attacks of two norms do
    not cost the same, so E-AT's update is the mean of both."""
    return [0.0, 0.5] if isinstance(objective, EAT) else [0.0]


def times(args: argparse.Namespace, start: Path) -> dict[str, Any]:
    """Milliseconds of an update's forward and backward at batch 128, interleaved."""
    calls, updates = {}, {}
    for name in OBJECTIVES:
        experiment = parse(flags(args, start, name)).experiment
        stage, model = experiment.finetune, load(start).train()
        assert stage.attack is not None
        attack, split = stage.attack.under(experiment.threat), experiment.data.load().train
        batch = next(iter(batches(split, batch_size=128, seed=0, epoch=0, shuffle=True)))

        def call(objective=stage.objective, model=model, batch=batch, attack=attack) -> None:
            generator, engine = torch.Generator().manual_seed(0), Engine(fold=True)
            counts = torch.zeros(objective.counters, dtype=torch.float64)
            for draw in draws(objective):
                step = Step(model, batch, attack, generator, engine, counts, draw)
                objective(step).loss.backward()

        calls[name], updates[name] = call, len(draws(stage.objective))
    warm(calls, "cpu")
    taken = measure(calls, Plan(least=5, most=15, budget=60), "cpu").seconds
    found = Times({n: [seconds / updates[n] for seconds in own] for n, own in taken.items()})
    return {
        "ms": {name: 1000 * (found.median(name) or 0) for name in calls},
        "RAMP over E-AT": found.ratio("RAMP", "E-AT"),
        "RAMP over MAX": found.ratio("RAMP", "MAX"),
        "E-AT over AT-linf": found.ratio("E-AT", "AT-linf"),
    }


def main() -> None:
    """Run, save, print."""
    args = arguments()
    if not args.table:
        torch.set_num_threads(1)
        _, _ = runs.summary(args.runs / "start", [*data(args, None), *NETWORK, *TEST, *PRETRAIN])
        start = args.runs / "start/seed-0/scratch/stage-1-pretrain/best.safetensors"
        names = list(OBJECTIVES)
        rows = {n: row(args.runs / n.lower(), flags(args, start, n)) for n in names}
        first = parse(flags(args, start, "E-AT")).experiment
        found = {
            "threat": {threat.norm: threat.eps for threat in first.threat.each},
            "train_images": len(first.data.load().train),
            "start": start_row(first, start),
            "rows": {n: {k: v for k, v in r.items() if k != "flags"} for n, r in rows.items()},
            "union_differences": {
                f"{a} - {b}": difference(rows[a]["flags"]["union"], rows[b]["flags"]["union"])
                for b, a in combinations(names, 2)
            },
            "update": times(args, start),
        }
        files.write_json(PATH, found)
    print(table(json.loads(PATH.read_text(encoding="utf-8"))))


def table(found: dict[str, Any]) -> str:
    """Markdown: accuracies in percent, times of an update, and the differences."""
    lines = [f"| fine-tuned with | {' | '.join(COLUMNS)} | ms an update |"]
    lines.append(f"|{'---|' * (len(COLUMNS) + 2)}")
    for name, values in {"nothing": found["start"], **found["rows"]}.items():
        cells = [runs.percent(values["accuracy"][column]) for column in COLUMNS]
        taken = found["update"]["ms"].get(name)
        lines.append(f"| {' | '.join([name, *cells, f'{taken:.0f}' if taken else ''])} |")
    lines += ["", "Union, paired by image and seed, points and standard error over images:"]
    pairs = found["union_differences"].items()
    lines[-1] += " " + "; ".join(f"{n} {mean:+.1f} ± {error:.1f}" for n, (mean, error) in pairs)
    ratios = [(n, v) for n, v in found["update"].items() if n != "ms"]
    lines.append("Times: " + ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios) + ".")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
