"""The fused ops against what a user would otherwise write: `python benchmarks/ops.py`.

Three tables, each row interleaved: every op in three shapes and two dtypes against eager torch,
inductor and a copy of the same bytes; bf16 against fp32; and eager against native at all sizes.
Prints medians and writes benchmarks/results/ops-<device>.json.
"""

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path

import l1
import l2
import linf
import torch
from timing import machine, measure, summary

from roli_fast import ops

SHAPES = {"1x3x4x4": (1, 3, 4, 4), "64x3x32x32": (64, 3, 32, 32), "64x3x224x224": (64, 3, 224, 224)}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CASES = {**linf.CASES, **l2.CASES, **l1.CASES}
TARGETS = {**linf.TARGETS, **l2.TARGETS, **l1.TARGETS}
ROUNDS = {name: part.ROUNDS for part in (linf, l2, l1) for name in part.CASES}
HALF_TARGETS = {"linf_step_": {"float32": 1.7}}
SIZES = {  # elements: a batch of images
    10**3: (4, 1, 10, 25),
    10**4: (8, 2, 25, 25),
    10**5: (16, 10, 25, 25),
    10**6: (64, 1, 125, 125),
    10**7: (64, 1, 250, 625),
}


class Report:
    """What is measured, kept and printed row by row."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.results: dict[str, object] = {"machine": machine(args.device, args.threads)}

    def row(self, name: str, calls: dict[str, Callable], rounds: int, goals: dict) -> None:
        """Time the candidates of one row."""
        times = measure(calls, min(rounds, self.args.rounds), self.args.device)
        result = self.results[name] = summary(times, goals)
        median, ratio = result["median_us"], result["times_native"]
        cells = "".join(f"  {n} {median[n]:.1f} us {ratio[n]:.2f}x" for n in times)  # type: ignore
        met = "" if not goals else ("  targets met" if result["met"] else "  TARGETS MISSED")
        print(f"{name:44}{cells}{met}", flush=True)


def beside_others(report: Report, op: str) -> None:
    """Against eager torch, inductor and a copy, in every shape and dtype."""
    for shape, sizes in SHAPES.items():
        for dtype, torch_dtype in DTYPES.items():
            goals = TARGETS.get(f"{op} {shape}", {}) if dtype == "float32" else {}
            calls = CASES[op](sizes, torch_dtype, report.args.device)
            report.row(f"{op} {shape} {dtype}", calls, ROUNDS[op], goals)


def half_beside_float(report: Report, op: str) -> None:
    """bf16 against fp32, both native."""
    native = {
        dtype: CASES[op](SHAPES["64x3x224x224"], torch_dtype, report.args.device)["native"]
        for dtype, torch_dtype in DTYPES.items()
    }
    calls = {"native": native["bfloat16"], "float32": native["float32"]}
    report.row(f"{op} bf16 beside fp32", calls, ROUNDS[op], HALF_TARGETS.get(op, {}))


def all_sizes(report: Report, op: str) -> None:
    """Against eager torch from 10^3 to 10^7 elements: never slower."""
    for elements, shape in SIZES.items():
        for dtype, torch_dtype in DTYPES.items():
            calls = CASES[op](shape, torch_dtype, report.args.device)
            calls = {name: calls[name] for name in ("native", "eager")}
            report.row(f"{op} {elements} elements {dtype}", calls, 7, {"eager": 1.0})


def main() -> None:
    """Run, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=41, help="at the most")
    parser.add_argument("--only", default="", help="ops whose name contains this; writes no file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    report = Report(args)
    chosen = [op for op in CASES if args.only in op]
    for op in chosen:
        for dtype in DTYPES.values():
            backend = ops.backend(op, args.device, dtype)
            if backend.name != "native":
                raise SystemExit(f"nothing to measure: {backend.reason}")
    for table in (beside_others, half_beside_float, all_sizes):
        print(f"\n{table.__doc__}")
        for op in chosen:
            table(report, op)
    report.results["machine"]["load_after"] = [round(load, 2) for load in os.getloadavg()]  # type: ignore
    if args.only:
        return
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    path = folder / f"ops-{args.device}.json"
    path.write_text(json.dumps(report.results, indent=1) + "\n")
    print(f"medians in us, and multiples of native; written to {path}")


if __name__ == "__main__":
    main()
