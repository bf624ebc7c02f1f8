"""Does a switch of the engine cost accuracy? The same training with each, over several seeds.

    python benchmarks/guard.py NAME --runs DIR [--only "fp32,bf16"] -- FLAGS OF roli_fast.train

`VARIANTS` are flags of every stage; "fp32" has all switches off and is what the others are
compared with, seed by seed. Tests are in fp32 whatever the training's dtype. It can be stopped and
called again; what was found is added to benchmarks/results/guard.json under NAME.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import runs
from roli_fast import files

RESULTS = Path(__file__).parent / "results" / "guard.json"
STAGES = ("probe", "finetune")
PLAIN = {"merge": "false", "fold": "false", "attention": "fused", "channels_last": "false"}
VARIANTS: dict[str, dict[str, str]] = {
    "fp32": PLAIN,
    "merge": PLAIN | {"merge": "true"},
    "fold": PLAIN | {"fold": "true"},
    "channels_last": PLAIN | {"channels_last": "true"},
    "products": PLAIN | {"attention": "products"},
    "default": {},
    "bf16": {"dtype": "bfloat16"},
}


def train(folder: Path, variant: str, flags: list[str]) -> dict[str, Any]:
    """The row of one variant; runs what is not finished yet."""
    done = folder / "row.json"
    if done.exists():
        return json.loads(done.read_text(encoding="utf-8"))
    own = ["--methods", "roli"]
    for stage in STAGES:
        for name, value in VARIANTS[variant].items():
            own += [f"--{stage}.engine.{name}", value]
    summary, _ = runs.summary(folder, [*own, *flags])
    tests = [run["test"] for run in summary["methods"]["roli"]["per_seed"]]
    row = {
        "attack": summary["attack"],
        "test_images": summary["test_images"],
        "clean": [test["clean_accuracy"] for test in tests],
        "robust": [next(iter(test["robust_accuracy"].values())) for test in tests],
    }
    files.write_json(done, row)
    return row


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Markdown: means and standard deviations in percent, and the paired difference to fp32."""
    lines = ["| variant | clean | robust | robust - fp32, points |", "|---|---|---|---|"]
    for name, row in rows.items():
        cells = [name, runs.percent(row["clean"]), runs.percent(row["robust"])]
        cells.append(difference(row["robust"], rows["fp32"]["robust"]) if name != "fp32" else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def difference(values: list[float], plain: list[float]) -> str:
    """Mean and standard error of what differs between equal seeds, in points."""
    points = [100 * (a - b) for a, b in zip(values, plain, strict=True)]
    if len(points) == 1:
        return f"{points[0]:+.1f}"
    return f"{statistics.mean(points):+.1f} ± {statistics.stdev(points) / len(points) ** 0.5:.1f}"


def main() -> None:
    """Run, save, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", help="of the setting, as the table shows it")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the run directories")
    parser.add_argument("--only", default=",".join(VARIANTS), help="variants; fp32 comes first")
    args = runs.arguments(parser)
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    rows = results.setdefault(args.name, {})
    for variant in args.only.split(","):
        rows[variant] = train(args.runs / variant.replace(" ", "-"), variant, args.flags)
        files.write_json(RESULTS, results)
    print(table(rows))


if __name__ == "__main__":
    main()
