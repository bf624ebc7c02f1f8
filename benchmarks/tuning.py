"""Every tuning method, RoLI and RanLI, on one backbone and one data set: accuracy and cost.

    python benchmarks/tuning.py NAME --runs DIR [--only lora,bias] -- FLAGS OF roli_fast.train

One process of `python -m roli_fast.train` for each method, so that peak memory is its own. It can
be stopped and called again: finished runs are kept, the one that was stopped is resumed. What was
found is added to benchmarks/results/tuning.json under NAME; `--table` prints all that is there.

The learning rates are `RATES` for every backbone, not tuned per row.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import runs
from roli_fast import files

RESULTS = Path(__file__).parent / "results" / "tuning.json"

RATES = {
    "linear": 1e-2,
    "bias": 5e-3,
    "lora": 5e-3,
    "adapter": 2e-3,
    "prompt": 1e-2,
    "full": 5e-4,
}
"""AdamW's rate of the fine-tune."""

METHODS = ("roli", "ranli")


def arguments() -> argparse.Namespace:
    """The command line; what follows `--` goes to roli_fast.train."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", nargs="?", help="of the backbone, as the table shows it")
    parser.add_argument("--runs", type=Path, help="folder of the run directories")
    parser.add_argument("--only", default=",".join(RATES), help="tuning methods")
    parser.add_argument("--table", action="store_true", help="print the table alone")
    args = runs.arguments(parser)
    if not args.table and not (args.name and args.runs):
        parser.error("NAME and --runs DIR are needed, or --table")
    return args


def train(folder: Path, tuning: str, flags: list[str]) -> dict[str, Any]:
    """The row of one tuning method; runs what is not finished yet."""
    done = folder / "row.json"
    if done.exists():
        return json.loads(done.read_text(encoding="utf-8"))
    own = ["--methods", ",".join(METHODS), "--finetune.tuning", tuning]
    own += ["--finetune.optimizer.lr", str(RATES[tuning])]
    summary, peak = runs.summary(folder, [*own, *flags])
    row = {"peak_mb": peak, "rate": RATES[tuning]}
    row |= {key: summary[key] for key in ("seeds", "attack", "test_images", "comparisons")}
    row |= {method: _method(summary["methods"][method]) for method in METHODS}
    files.write_json(done, row)
    return row


def _method(result: dict[str, Any]) -> dict[str, Any]:
    last = result["stages"][-1]
    tests = [run["test"] for run in result["per_seed"]]
    return {
        "epochs": [stage["epochs"] for stage in result["stages"]],
        "trainable_parameters": last["trainable_parameters"],
        "train_images_per_second": last["train_images_per_second"],
        "clean": [test["clean_accuracy"] for test in tests],
        "robust": [next(iter(test["robust_accuracy"].values())) for test in tests],
    }


def table(results: dict[str, Any]) -> str:
    """All backbones as Markdown; means over the seeds with their standard deviation, in percent."""
    lines = [
        "| backbone | tuning | trainable | img/s | peak MB | RoLI clean | PGD-10 | RanLI clean "
    ]
    lines[0] += "| PGD-10 |"
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for name, rows in results.items():
        for tuning, row in rows["rows"].items():
            cells = [name, tuning, f"{row['roli']['trainable_parameters']:,}"]
            cells += [f"{row['roli']['train_images_per_second']:.0f}", f"{row['peak_mb']:.0f}"]
            cells += [
                runs.percent(row[method][what])
                for method in METHODS
                for what in ("clean", "robust")
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run, save, print."""
    args = arguments()
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    if args.table:
        print(table(results))
        return
    rows = {t: train(args.runs / t, t, args.flags) for t in args.only.split(",")}
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    results[args.name] = {"rows": results.get(args.name, {}).get("rows", {}) | rows}
    files.write_json(RESULTS, results)
    print(table(results))


if __name__ == "__main__":
    main()
