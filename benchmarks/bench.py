"""All benchmarks: `python benchmarks/bench.py [GROUP ...]`; the table comes last.

    python benchmarks/bench.py                 # all groups, about 25 minutes on two cores
    python benchmarks/bench.py pgd train       # some
    python benchmarks/bench.py --quick         # tiny networks: does everything run?
    python benchmarks/bench.py --table         # what results/ holds, without measuring

Every group writes results/<group>-<device>.json; a quick run keeps nothing without --out.
"""

import argparse
import gc
import importlib
import json
import os
import sys
import traceback
from pathlib import Path

import torch

from groups import GROUPS
from harness import report as reports
from harness.report import Options, Report
from roli_fast import files

BUSY = 0.5  # load before the run


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=", ".join(GROUPS))
    parser.add_argument("--device", choices=("cpu", "cuda"), help="cuda where there is one")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--quick", action="store_true", help="tiny; times mean nothing")
    parser.add_argument("--scale", type=float, default=1.0, help="of every case's seconds")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--out", type=Path, help="folder of the JSON files")
    parser.add_argument("--table", action="store_true", help="print what --out holds, run nothing")
    parser.add_argument("--merge", type=Path, help="with --table: write them as one file as well")
    parser.add_argument("--weights", default="", help="autoattack: a best.safetensors")
    parser.add_argument("--root", default="", help="autoattack: the image folder of the weights")
    parser.add_argument("--images", type=int, default=200, help="autoattack: how many")
    parser.add_argument("--alone", nargs=2, metavar=("CASE", "NAME"), help=argparse.SUPPRESS)
    return parser


def main() -> int:
    """Run, print; 1 if a group failed."""
    parser = arguments()
    args = parser.parse_args()
    if unknown := set(args.groups) - set(GROUPS):
        parser.error(f"no group {', '.join(sorted(unknown))}; there are {', '.join(GROUPS)}")
    names = args.groups or list(GROUPS)
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    kept = ("threads", "quick", "scale", "only", "weights", "root", "images")
    options = Options(device=device, **{key: getattr(args, key) for key in kept})
    torch.set_num_threads(args.threads)
    if args.alone:
        print(importlib.import_module("groups.memory").alone(options, *args.alone))
        return 0
    out = args.out or (None if args.quick or args.only else reports.RESULTS)
    if args.table:
        paths = [path_of(name, options, args.out or reports.RESULTS) for name in names]
        found = stored(paths)
        if args.merge:
            files.write_json(args.merge, {report["group"]: report for report in found})
        print(reports.table(found))
        return 0
    if not args.quick and (load := os.getloadavg()[0]) > BUSY:
        print(f"this machine is busy (load {load:.1f}): a run for results/ wants an idle one")
    done, failed = [], []
    for name in names:
        report = Report(name, options, out and path_of(name, options, out))
        try:
            importlib.import_module(f"groups.{name}").run(report)
        except Exception:  # the other groups are worth their rows
            traceback.print_exc()
            failed.append(name)
        report.machine["load_after"] = [round(load, 2) for load in os.getloadavg()]
        report.save()
        done.append(report.as_json())
        gc.collect()
    print(reports.table(done))
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


def path_of(name: str, options: Options, folder: Path) -> Path:
    """A group's result file; AutoAttack on a network of one's own has another than on digits."""
    digits = "-digits" if name == "autoattack" and not options.weights else ""
    return folder / f"{name}{digits}-{options.device}.json"


def stored(paths: list[Path]) -> list[dict]:
    """What these files hold, where they are there; files from before the groups have no rows."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]
    return [report for report in found if "rows" in report]


if __name__ == "__main__":
    sys.exit(main())
