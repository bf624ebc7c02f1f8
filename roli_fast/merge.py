"""The line between two fine-tunes of one backbone: weights w (1 - t) + t v, with clean and robust
accuracy at every t (WiSE-FT, Wortsman et al. 2022, arXiv:2109.01903, of a clean and a robust one).

python -m roli_fast.merge --between CLEAN ROBUST --to FOLDER [--at 0,0.25,0.5,0.75,1] [--save T]
"""

import argparse
import copy
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import update_bn

from roli_fast import peft
from roli_fast.data import ImageDataset, batches
from roli_fast.engine import Engine
from roli_fast.engine.engine import DTYPES
from roli_fast.errors import ArgumentError, RoliFastError, describe
from roli_fast.evaluate import evaluate
from roli_fast.evaluate.__main__ import parse
from roli_fast.evaluate.config import SCHEMA, EvaluationConfig
from roli_fast.evaluate.prepare import Prepared, open_model, prepare
from roli_fast.evaluate.shares import accuracy_of
from roli_fast.files import write_json
from roli_fast.models import Classifier, save_model
from roli_fast.running.command import run_command
from roli_fast.running.ranks import Ranks
from roli_fast.running.text import align

logger = logging.getLogger("roli_fast.merge")

RENEWED = 2000
"""Training images, at most, by which statistics of BatchNorm are renewed."""

ATTACKS = "apgd-ce-20"
"""What is made at every t, where nothing else is asked for."""


def between(first: Classifier, second: Classifier, t: float) -> Classifier:
    """A new model of the weights first (1 - t) + t second, LoRA merged; integers are the first's.

    With BatchNorm renew its statistics before you use it (`torch.optim.swa_utils.update_bn`): they
    are of neither model's features.

    Raises:
        ArgumentError: they are no fine-tunes of one backbone to the same classes, or t is not in
            [0, 1].
    """
    if not 0 <= t <= 1:
        raise ArgumentError(describe("t", "a number in [0, 1]", t))
    one, two = _plain(first), _plain(second)
    for part in ("name", "options", "head", "tuning", "mean", "std", "resize", "classes"):
        theirs = [model.card.get(part) or None for model in (one, two)]
        if theirs[0] != theirs[1] and (part != "classes" or all(theirs)):
            got = f"{part} {theirs[0]} and {theirs[1]}"
            raise ArgumentError(describe("between", "two fine-tunes of one backbone", got))
    others, mixed = two.state_dict(), dict[str, Tensor]()
    for name, tensor in one.state_dict().items():
        if name not in others or tensor.shape != others[name].shape:
            got = f"{tuple(tensor.shape)} and {tuple(others.get(name, torch.empty(0)).shape)}"
            expected = f"models of the same classes, of one shape in {name}"
            raise ArgumentError(describe("between", expected, got))
        floating = tensor.is_floating_point()
        mixed[name] = tensor.lerp(others[name].to(tensor), t) if floating else tensor
    model = copy.deepcopy(one)
    model.load_state_dict(mixed)
    return model


def _plain(model: Any) -> Classifier:
    """Without LoRA, which is no straight line of its factors."""
    if not isinstance(model, Classifier):
        fix = "Save it as a weight file, and name its architecture by --model.name."
        raise ArgumentError(describe("between", "weight files", type(model).__name__, fix))
    lora = any(isinstance(module, peft.LoraLinear) for module in model.modules())
    return peft.merge(model) if lora else model


def line(
    config: EvaluationConfig, ready: Prepared, second: Any, points: Sequence[float]
) -> Iterator[tuple[dict[str, Any], Classifier]]:
    """(what was found, model) at every t. The ends are the two models as they are; between them
    statistics of BatchNorm are renewed on training images."""
    first: Any = ready.opened.model
    attacks = {f"{t.norm} {a.label}": a.under(t) for t in config.threats for a in config.attacks}
    engine = Engine(dtype=DTYPES[config.search_dtype], batch_size=config.batch_size)
    train = ready.splits.train.plain()
    some = train.subset(torch.arange(count := min(RENEWED, len(train))) * len(train) // count)
    for t in points:
        model = between(first, second, t).to(ready.device).eval()
        if 0 < t < 1:
            update_bn((batch.x for batch in _batches(config, ready, some)), model)
        images = _batches(config, ready, ready.datasets["data"])
        found = evaluate(model, images, attacks, seed=config.seed, engine=engine)
        robust = {name: accuracy_of(flags) for name, flags in found.robust.items()}
        accuracies = {"clean": accuracy_of(found.clean), "robust": accuracy_of(found.union)}
        yield {"t": t, **accuracies, "attacks": robust}, model


def _batches(config: EvaluationConfig, ready: Prepared, dataset: ImageDataset) -> Iterator[Any]:
    how: Any = dict(batch_size=config.batch_size, device=ready.device)
    return batches(dataset, seed=0, epoch=0, shuffle=False, **how)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Accuracies in percent, a row a t."""
    names = [*rows[0]["attacks"]]
    lines = [["t", "clean", *names, *["all attacks"] * (len(names) > 1)]]
    for row in rows:
        found = [row["clean"], *row["attacks"].values(), *[row["robust"]] * (len(names) > 1)]
        lines.append([f"{row['t']:g}", *(f"{100 * one['accuracy']:.1f} %" for one in found)])
    return "\n".join(align(lines))


def _numbers(text: str) -> set[float]:
    return {float(number) for number in text.split(",")}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (0 done, 2 a mistake)."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    parser = argparse.ArgumentParser(
        "python -m roli_fast.merge",
        description=__doc__,
        epilog="Further options are those of python -m roli_fast.evaluate: --data, --norm, --eps, "
        f"--images, --attacks (here {ATTACKS}); of a training run's models data and threat.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--between", nargs=2, required=True, metavar="MODEL")
    parser.add_argument("--to", type=Path, required=True, help="the folder for merge.json")
    parser.add_argument("--at", type=_numbers, default="0,0.25,0.5,0.75,1", help="values of t")
    parser.add_argument(
        "--save", type=float, metavar="T", help="write merged.safetensors of this t"
    )
    given, rest = parser.parse_known_args(arguments)
    chosen = any(flag.startswith(("--attacks", "--config")) for flag in rest)
    try:
        rest += [] if chosen else ["--attacks", ATTACKS]
        config = parse(["--model", given.between[0], *rest]).config
        ready = prepare(config, Ranks())
        source = replace(config.model, source=given.between[1])
        size = ready.datasets["data"].image_size
        second = open_model(source, num_classes=ready.num_outputs, image_size=size)
        classes, rows = ready.opened.classes or ready.splits.classes, list[dict[str, Any]]()
        points = sorted({*given.at, given.save} - {None})
        for found, model in line(config, ready, second.model, points):
            logger.info("t = %g: clean %.1f %%", found["t"], 100 * found["clean"]["accuracy"])
            rows.append(found)
            if found["t"] == given.save:
                save_model(model, given.to / "merged.safetensors", classes=tuple(classes))
        asked = {"between": given.between, "saved": given.save, "config": SCHEMA.to_tree(config)}
        write_json(given.to / "merge.json", {**asked, "line": rows})
    except RoliFastError as error:
        logger.error("error: %s", error)
        return 2
    print(table(rows))
    print(f"Everything is in {given.to}.")
    return 0


if __name__ == "__main__":
    run_command(main)
