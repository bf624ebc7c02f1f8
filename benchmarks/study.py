"""Studies: the same training by several settings, over seeds, beside each other.

    python benchmarks/study.py NAME --runs DIR [--set images=DIR ...] [--only ROW,ROW] [-- FLAGS]

studies/NAME.yaml says what is compared:

    about:    one line
    flags:    of `python -m roli_fast.train`, for every row; {images} is what --set images= gives
    rows:     name -> its own flags, or a list of such maps, of which every combination is a row
    against:  the row that the others are compared with, image by image; the first where not said

What follows `--` is added to every row, and belongs into the setting's name (`--setting`), under
which results/NAME.json keeps what was found: accuracies of each seed, differences, cost. Each row
is a process of its own, so that its peak memory is its own. A row that begins as an earlier one did
takes over its finished stages. It can be stopped and called again: finished rows are read, the
one that was stopped is resumed. `--table` prints what there is.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from harness.report import RESULTS
from roli_fast import files

STUDIES = Path(__file__).parent / "studies"


def arguments(given: Sequence[str]) -> argparse.Namespace:
    """The parsed command line; `flags` holds what follows `--`."""
    own, flags = list(given), list[str]()
    if "--" in own:
        own, flags = own[: own.index("--")], own[own.index("--") + 1 :]
    names = sorted(path.stem for path in STUDIES.glob("*.yaml"))
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", choices=names)
    parser.add_argument("--runs", type=Path, help="folder of the run directories")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--setting", default="", help="what this time's images and network are")
    parser.add_argument("--only", help="rows to run, with commas between")
    parser.add_argument("--table", action="store_true", help="print what was found, run nothing")
    args = parser.parse_args(own, argparse.Namespace(flags=flags))
    if not args.table and not args.runs:
        parser.error("--runs DIR is needed, or --table")
    return args


def rows_of(study: Mapping[str, Any]) -> dict[str, list[str]]:
    """Row -> its flags; of several maps every combination, "a / b"."""
    maps = study["rows"] if isinstance(study["rows"], list) else [study["rows"]]
    return {
        " / ".join(name for name, _ in chosen): [
            w for _, own in chosen for w in (own or "").split()
        ]
        for chosen in product(*(part.items() for part in maps))
    }


def filled(words: Sequence[str], values: Mapping[str, str]) -> list[str]:
    """The words with {name} replaced by its value.

    Raises:
        SystemExit: a name without value.
    """
    try:
        return [word.format_map(values) if "{" in word else word for word in words]
    except KeyError as error:
        raise SystemExit(f"this study needs --set {error.args[0]}=...") from error


def trained(folder: Path, flags: Sequence[str]) -> float:
    """Train into `folder`, or go on there; peak memory of the process in MB.

    Raises:
        SystemExit: the training failed.
    """
    command = [sys.executable, "-m", "roli_fast.train", "--run_dir", str(folder)]
    command += ["--resume"] if (folder / "config.yaml").exists() else flags
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)  # noqa: S603 - our own module
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        code = os.waitstatus_to_exitcode(status)
        raise SystemExit(f"{folder.name}: training ended with status {code}")
    return usage.ru_maxrss / 1024


def row(folder: Path, flags: Sequence[str]) -> dict[str, Any]:
    """What one row came to: method -> stages, accuracies and flags by column, one a seed."""
    done = folder / "row.json"
    if done.exists():
        return json.loads(done.read_text(encoding="utf-8"))
    peak = trained(folder, flags)
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    found: dict[str, Any] = {"peak_mb": peak}
    found |= {key: summary[key] for key in ("seeds", "attack", "test_images")}
    found["methods"] = {}
    for method, result in summary["methods"].items():
        tests = [
            json.loads((folder / f"seed-{seed}/{method}/test.json").read_text(encoding="utf-8"))
            for seed in summary["seeds"]
        ]
        columns = list(tests[0]["robust_accuracy"])
        found["methods"][method] = {
            "stages": result["stages"],
            "accuracy": {"clean": [test["clean_accuracy"] for test in tests]}
            | {name: [test["robust_accuracy"][name] for test in tests] for name in columns},
            "seen": {"clean": [test["clean_flags"] for test in tests]}
            | {name: [test["robust_flags"][name] for test in tests] for name in columns},
        }
    files.write_json(done, found)
    return found


def difference(a: Sequence[str], b: Sequence[str]) -> list[float]:
    """[mean, half of the 95 % interval] in points of a's flags less b's, paired by image and seed;
    the interval is over images, each the mean of its seeds."""
    pairs = [
        [int(x) - int(y) for x, y in zip(first, second, strict=True)]
        for first, second in zip(a, b, strict=True)
    ]
    means = [statistics.mean(values) for values in zip(*pairs, strict=True)]
    half = 1.96 * statistics.stdev(means) / math.sqrt(len(means))
    return [100 * statistics.mean(means), 100 * half]


def compared(rows: Mapping[str, Any], against: str) -> dict[str, Any]:
    """The rows as the results keep them: flags give way to differences to the row `against`."""
    base, out = rows.get(against), {}
    for name, one in rows.items():
        methods = {}
        for method, found in one["methods"].items():
            seen, kept = found["seen"], {k: v for k, v in found.items() if k != "seen"}
            theirs = base and base["methods"].get(method, {}).get("seen")
            if theirs and name != against:
                kept["difference"] = {c: difference(seen[c], theirs[c]) for c in seen}
            methods[method] = kept
        out[name] = one | {"methods": methods}
    return out


def percent(values: Sequence[float]) -> str:
    """Mean of accuracies, with the standard deviation of several, in percent."""
    mean = 100 * statistics.mean(values)
    if len(values) == 1:
        return f"{mean:.1f}"
    return f"{mean:.1f} ± {100 * statistics.stdev(values):.1f}"


def table(rows: Mapping[str, Any], against: str) -> str:
    """Markdown of one setting: accuracies in percent, the difference in the last column to the row
    `against` in points; forwards of one image, where they are known, and seconds of training."""
    methods = list(dict.fromkeys(m for one in rows.values() for m in one["methods"]))
    first = next(iter(rows.values()))["methods"][methods[0]]
    columns = list(first["accuracy"])
    heads = [f"{m} {c}" if len(methods) > 1 else c for m in methods for c in columns]
    heads += [f"{heads[len(columns) - 1]} - {against}"]
    costs = [c for c in ("passes", "train_seconds") if (first["stages"] or [{}])[-1].get(c)]
    heads += [c.removeprefix("train_") for c in costs]
    lines = [f"| | {' | '.join(heads)} |", f"|{'---|' * (len(heads) + 1)}"]
    for name, one in rows.items():
        found = [one["methods"].get(method) for method in methods]
        cells = [percent(own["accuracy"][c]) if own else "-" for own in found for c in columns]
        gap = found[0].get("difference", {}).get(columns[-1]) if found[0] else None
        cells.append(f"{gap[0]:+.1f} ± {gap[1]:.1f}" if gap else "")
        stages = [stage for own in found if own for stage in own["stages"]]
        cells += [f"{sum(stage[c] for stage in stages):,.0f}" for c in costs]
        lines.append(f"| {' | '.join([name, *cells])} |")
    return "\n".join(lines)


def main(given: Sequence[str] | None = None) -> None:
    """Run, save after each row, print."""
    args = arguments(sys.argv[1:] if given is None else given)
    path = STUDIES / f"{args.name}.yaml"
    study = yaml.safe_load(path.read_text(encoding="utf-8"))
    kept = RESULTS / f"{args.name}.json"
    results = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    rows = rows_of(study)
    against = study.get("against", next(iter(rows)))
    if not args.table:
        wanted = args.only.split(",") if args.only else list(rows)
        if unknown := set(wanted) - set(rows):
            raise SystemExit(f"--only: no row {', '.join(unknown)}; there are {', '.join(rows)}")
        values = dict(text.split("=", 1) for text in args.set)
        found: dict[str, Any] = {}
        for name in wanted:
            told = [*study["flags"].split(), *rows[name], *args.flags]
            folder = args.runs / name.replace(" / ", "--").replace(" ", "-")
            found[name] = row(folder, filled(told, values)) | {"flags": told}  # {images}, no path
            results[args.setting] = results.get(args.setting, {}) | compared(found, against)
            files.write_json(kept, results)
    for setting, own in results.items():
        print(f"\n{setting or args.name}\n\n{table(own, against)}")


if __name__ == "__main__":
    main()
