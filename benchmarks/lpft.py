"""FT, LP-FT, RanLI and RoLI beside each other: accuracy, and why.

    python benchmarks/lpft.py --runs DIR --data digits
    python benchmarks/lpft.py --runs DIR --data caltech101 --root FOLDER --weights FILE

Four methods from one robust backbone, over several seeds: a fine-tune on clean images from a fresh
head (FT) and from a linearly probed one (LP-FT), and the same on attacked images (RanLI, RoLI). All
four fine-tunes have the same optimiser, rate, epochs and batches and keep their last weights, and
the fresh heads of a seed are the same, so that features move by what differs: the head, or the
attack. LP is L-BFGS on cached features, RoLI's probe a few epochs under attack.

`digits` is the quickstart: each seed pretrains its own backbone on other digits. `caltech101` takes
five images a class at 32x32 and a weight file (its network: docs/train.md, `Two real examples`).

It can be stopped and called again. results/lpft.json has, for each data set, every seed's numbers,
and what is claimed of them (lpft_claims.py).
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

from harness.report import RESULTS, machine
from lpft_claims import NAMES, Values, judge
from lpft_tables import table
from roli_fast import files
from roli_fast.attacks import PGD
from roli_fast.data import batches
from roli_fast.evaluate import evaluate
from roli_fast.train import Experiment, run
from roli_fast.train.cli import parse
from roli_fast.train.run_directory import RunStage

PATH = RESULTS / "lpft.json"
METHODS = tuple(NAMES)
SHARED = (
    f"--methods {','.join(METHODS)} --threads 1 --analysis_images 0 --validation.steps 5 "
    "--finetune.select last --finetune.validate_every 4"
).split()
IMAGES = {"digits": 400, "caltech101": 128}
"""Of each split, that every method is analysed on."""
DIGITS = "--config quickstart --note=".split()
CALTECH = (
    "--data json_splits --data.image_size 32 --data.max_per_class 5 --threat.eps 4/255 "
    "--test.steps 3 --test.step_size 2/255 "
    "--model.mean 0.485,0.456,0.406 --model.std 0.229,0.224,0.225 --model.options.img_size 32 "
    "--model.options.patch_size 4 --model.options.embed_dim 128 --model.options.depth 6 "
    "--model.options.num_heads 4 --model.options.class_token false --model.options.global_pool avg "
    "--probe.epochs 2 --probe.attack.steps 3 --probe.optimizer.name adamw "
    "--probe.optimizer.lr 1e-2 --probe.optimizer.weight_decay 0 --probe.warmup_epochs 0.5 "
    "--finetune.epochs 4 --finetune.attack.steps 3 --finetune.optimizer.lr 5e-4 "
    "--finetune.warmup_epochs 0.5"
).split()
QUICK = {
    "digits": "--data.max_per_class 30 --source.max_per_class 20 --pretrain.epochs 2 "
    "--pretrain.eps_schedule constant --pretrain.warmup_epochs 0 --probe.epochs 1 "
    "--finetune.epochs 2",
    "caltech101": "--data.max_per_class 2 --probe.epochs 1 --finetune.epochs 1",
}
"""To see that all runs; its numbers mean nothing."""


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=Path, help="folder of the run directories")
    parser.add_argument("--data", choices=tuple(QUICK))
    parser.add_argument("--root", help="Caltech-101 with its train.json, val.json and test.json")
    parser.add_argument("--weights", help="the robust backbone for Caltech-101")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--quick", action="store_true", help="tiny, to see that all runs")
    parser.add_argument("--out", type=Path, default=PATH, help="the JSON file")
    parser.add_argument("--table", action="store_true", help="print what was found, run nothing")
    args = parser.parse_args(given)
    if not args.table and not (args.runs and args.data):
        parser.error("--runs DIR and --data NAME are needed, or --table")
    if not args.table and args.data == "caltech101" and not (args.root and args.weights):
        parser.error("--data caltech101 needs --root FOLDER and --weights FILE")
    return args


def experiment(args: argparse.Namespace) -> Experiment:
    """The run: RanLI's stage is RoLI's second, so that all fine-tunes have the same updates."""
    own = DIGITS if args.data == "digits" else CALTECH
    flags = [*own, *SHARED, "--seeds", args.seeds]
    if args.data == "caltech101":
        flags += ["--data.root", args.root, "--model.weights", args.weights]
    if args.quick:
        flags += QUICK[args.data].split()
    found = parse(flags).experiment
    return replace(found, ranli=found.finetune)


def clean_probe(own: Experiment, seed: int, folder: Path) -> Experiment:
    """RoLI's probe without its attack, which L-BFGS differs from in more than that. It starts from
    the weights that the run in `folder` pretrained, where it did."""
    found = replace(own, methods=("lp",), seeds=(seed,), lp=replace(own.probe, attack=None))
    if own.source is None:
        return found
    weights = folder.resolve() / f"seed-{seed}/pretrain/best.safetensors"
    return replace(found, source=None, model=replace(own.model, weights=str(weights)))


def analyse(folders: Sequence[Path], images: int, *more: str) -> None:
    """Each method's analysis.json, on as many images of one method as of another (a run's own light
    analysis looks at fewer where little was trained)."""
    flags = ["--images", str(images), *more]
    command = [sys.executable, "-m", "roli_fast.analyze", *map(str, folders), *flags]
    done = subprocess.run(command, stdout=subprocess.DEVNULL)  # noqa: S603 - our own module
    if done.returncode:
        raise SystemExit(f"{folders[0]}: the analysis ended with status {done.returncode}")


def scale_free(experiment: Experiment, folder: Path) -> None:
    """Each final model's accuracy under an attack on the margin, into scale_free.json.

    A large head saturates the softmax and takes the gradient from an attack on the cross-entropy;
    the sign of the margin's gradient knows no scale.
    """
    splits = experiment.data.load()
    attack = PGD(norm=None, eps=None, step_size=None, bounds=None, steps=10, loss="margin")
    for seed, method in product(experiment.seeds, METHODS):
        path = folder / f"seed-{seed}" / method / "scale_free.json"
        if path.exists():
            continue
        number = len(experiment.stages(method))
        model = RunStage(experiment, splits, folder, seed, method, number).trained_model()
        loaded = batches(splits.test, batch_size=100, seed=0, epoch=0, shuffle=False)
        found = evaluate(model, loaded, [attack.under(experiment.threat)], seed=seed)
        files.write_json(path, found.robust_accuracy)


def numbers(folder: Path) -> dict[str, float | None]:
    """What one seed of one method came to: quantity -> number; None where it is not defined."""
    test, found, margin = (
        json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("test", "analysis", "scale_free")
    )
    first, last = found["stages"][0], found["stages"][-1]
    own: dict[str, float | None] = {
        "clean": test["clean_accuracy"],
        "robust": next(iter(test["robust_accuracy"].values())),
        "robust_margin": next(iter(margin.values())),
        "norm_fresh": first["start"]["head"]["norm"],
        "norm_start": last["start"]["head"]["norm"],
        "norm_end": last["end"]["head"]["norm"],
    }
    probed = folder / "stage-1-lp/result.json"
    own["strength"] = json.loads(probed.read_text())["strength"] if probed.exists() else None
    for kind in ("clean", "adversarial"):
        own[f"residual_{kind}"] = last["start"]["residual"][kind]
        own[f"separation_{kind}"] = last["end"]["separation"][kind]
        change, step = last["change"][kind], (last.get("one_step") or {}).get(kind) or {}
        for name, key in DRIFTS.items():
            own[f"{name}_{kind}"] = change[key]
        for name in ("ft_ratio", "predicted", "actual"):
            own[f"{name}_{kind}"] = step.get(name)
        update = step.get("first_update") or {}
        for name in ("predicted", "actual"):
            own[f"update_{name}_{kind}"] = update.get(name)
        moved, logits = step.get("predicted"), step.get("predicted_logits")
        own[f"per_logit_{kind}"] = moved / logits if moved is not None and logits else None
    return own | calibrated(found["calibration"])


DRIFTS = {"drift": "absolute", "relative": "relative", "cosine": "cosine", "cka": "cka"}


def calibrated(found: Mapping[str, Any]) -> dict[str, float | None]:
    """Calibration errors of test images, clean and attacked; with a temperature where one could be
    fitted: what was not scaled says nothing of scaling."""
    own: dict[str, float | None] = {}
    for kind in ("clean", "adversarial"):
        part = found[kind]
        fits = part["fitted"]
        own[f"ece_{kind}"] = part["before"]["ece"]
        own[f"ece_{kind}_after"] = part["after"]["ece"] if fits else None
        own[f"temperature_{kind}"] = part["temperature"] if fits else None
    borrowed = found["adversarial"]["with_clean_temperature"]["ece"]
    own["ece_adversarial_borrowed"] = borrowed if found["clean"]["fitted"] else None
    return own


def probed(folder: Path) -> dict[str, float | None]:
    """What one seed of the clean probe came to."""
    (stage,) = json.loads((folder / "analysis.json").read_text(encoding="utf-8"))["stages"]
    start, end = stage["start"], stage["end"]
    return {
        "norm_end": end["head"]["norm"],
        "residual_start": start["residual"]["clean"],
        "residual_end": end["residual"]["clean"],
    }


def values(folder: Path, probes: Mapping[int, Path]) -> Values:
    """method -> quantity -> one number for each seed; "clean_probe" is a method too.

    Args:
        folder: of the run.
        probes: seed -> the run of its clean probe.
    """
    rows = {m: [numbers(folder / f"seed-{seed}" / m) for seed in probes] for m in METHODS}
    rows["clean_probe"] = [probed(own / f"seed-{seed}/lp") for seed, own in probes.items()]
    return {m: {name: [row[name] for row in own] for name in own[0]} for m, own in rows.items()}


def settings(experiment: Experiment) -> dict[str, Any]:
    """What a reader has to know of the runs."""
    splits, stage = experiment.data.load(), experiment.finetune
    return {
        "images": {n: len(getattr(splits, n)) for n in ("train", "val", "test")},
        "classes": splits.num_classes,
        "threat": {threat.norm: threat.eps for threat in experiment.threat.each},
        "test": experiment.test.under(experiment.threat).label,
        "head_init": experiment.fresh_head,
        "finetune": {
            "optimizer": stage.optimizer.name,
            "lr": stage.optimizer.lr,
            "epochs": stage.epochs,
            "batch_size": stage.batch_size,
        },
        "epochs": {m: [s.epochs for _, s in experiment.stages(m)] for m in METHODS},
        "seeds": list(experiment.seeds),
    }


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Run, analyse, judge and time one data set."""
    own, folder = experiment(args), args.runs / args.data
    probes = {seed: args.runs / f"{args.data}-probe-{seed}" for seed in own.seeds}
    where, quiet = machine("cpu", 1), not sys.stderr.isatty()
    run(own, folder, resume=folder.exists(), quiet=quiet)
    for seed, probe in probes.items():
        run(clean_probe(own, seed, folder), probe, resume=probe.exists(), quiet=quiet)
    scale_free(own, folder)
    images = 110 if args.quick else IMAGES[args.data]
    analyse([folder], images, "--ft_ratio")
    analyse(list(probes.values()), images)
    found = values(folder, probes)
    return {
        "quick": args.quick,
        "machine": where,
        "settings": settings(own) | {"analysed": images},
        "values": found,
        "claims": judge(found),
    }


def main() -> None:
    """Run, save, print."""
    args = arguments()
    results = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {}
    if not args.table:
        torch.set_num_threads(1)
        results[args.data] = measure(args)
        files.write_json(args.out, results)
    quick = [name for name, found in results.items() if found["quick"]]
    print(table(results), f"\nQUICK, numbers mean nothing: {', '.join(quick)}" if quick else "")


if __name__ == "__main__":
    main()
