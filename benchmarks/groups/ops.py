"""The fused ops against what a user would otherwise write.

Three tables, each row interleaved: every op in three shapes and two dtypes against eager torch,
inductor and a copy of the same bytes; bf16 against fp32; and eager against native at all sizes.
The file keeps all of them by name, in us and multiples of native; the rows are those of 224 pixels.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from groups.pgd import quick
from harness import timing
from harness.report import Report, rounded
from harness.timing import Call, Plan
from op_cases import fab, l1, l2, linf
from roli_fast import ops

SHAPES = {"1x3x4x4": (1, 3, 4, 4), "64x3x32x32": (64, 3, 32, 32), "64x3x224x224": (64, 3, 224, 224)}
LARGE = "64x3x224x224"
QUICK_SHAPES = {"1x3x4x4": (1, 3, 4, 4), LARGE: (2, 3, 16, 16)}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PARTS = (linf, l2, l1, fab)
MAKERS = {op: make for part in PARTS for op, make in part.CASES.items()}
TARGETS = {row: goals for part in PARTS for row, goals in part.TARGETS.items()}
ROUNDS = {name: part.ROUNDS for part in PARTS for name in part.CASES}
HALF_TARGETS = {"linf_step_": {"float32": 1.7}}
SIZES = {  # elements: a batch of images
    10**3: (4, 1, 10, 25),
    10**4: (8, 2, 25, 25),
    10**5: (16, 10, 25, 25),
    10**6: (64, 1, 125, 125),
    10**7: (64, 1, 250, 625),
}
BUDGET = 2.5  # seconds a row, at least 5 rounds of it


def run(op: str, report: Report) -> None:
    """The tables of one op."""
    for dtype in DTYPES.values():
        backend = ops.backend(op, report.options.device, dtype)
        if backend.name != "native":
            note = f"nothing to measure: {backend.reason}"
            report.add_row({"case": op, "name": "native", "note": note})
            return
    half_beside_float(report, op)
    all_sizes(report, op)
    beside_others(report, op)
    large_rows(report, op)


def row(report: Report, name: str, calls: dict[str, Call], rounds: int, goals: dict) -> None:
    """Time the candidates of one row and keep them under its name."""
    options = report.options
    if options.quick:  # the compiler alone takes seconds
        calls = {key: call for key, call in calls.items() if not key.startswith("inductor")}
    repeats = timing.warm(calls, options.device)
    plan = quick(Plan(5, rounds, BUDGET), options)
    times = timing.measure(calls, plan, options.device, repeats)
    report.timed = times, "native"  # of the last row: the largest shape
    report.extra[name] = found = summary(times, goals)
    report.save()
    median, ratio = found["median_us"], found["times_native"]
    print(name, *(f"  {n} {median[n]:.1f} us {ratio[n]:.2f}x" for n in calls), flush=True)
    for other, least in goals.items():
        report.target(f"{name}: times as fast as {other}", ratio.get(other), at_least=least)


def summary(times: timing.Times, goals: dict[str, float]) -> dict[str, Any]:
    """Medians in microseconds, and how many times slower than native each candidate is."""
    ratios = {name: times.ratio(name, "native") or 0.0 for name in times.seconds}
    return {
        "median_us": {n: round(1e6 * (times.median(n) or 0.0), 2) for n in ratios},
        "quartiles_us": {n: [round(q * 1e6, 2) for q in times.quartiles(n)] for n in ratios},
        "times_native": {n: round(ratio, 2) for n, ratio in ratios.items()},
        "targets": {n: round(goal, 3) for n, goal in goals.items()},
        "met": all(ratios.get(name, goal) >= goal for name, goal in goals.items()),
    }


def beside_others(report: Report, op: str) -> None:
    """Against eager torch, inductor and a copy, in every shape and dtype."""
    for shape, sizes in (QUICK_SHAPES if report.options.quick else SHAPES).items():
        for dtype, torch_dtype in DTYPES.items():
            goals = TARGETS.get(f"{op} {shape}", {}) if dtype == "float32" else {}
            calls = MAKERS[op](sizes, torch_dtype, report.options.device)
            row(report, f"{op} {shape} {dtype}", calls, ROUNDS[op], goals)


def half_beside_float(report: Report, op: str) -> None:
    """bf16 against fp32, both native."""
    shape = (QUICK_SHAPES if report.options.quick else SHAPES)[LARGE]
    native = {
        dtype: MAKERS[op](shape, torch_dtype, report.options.device)["native"]
        for dtype, torch_dtype in DTYPES.items()
    }
    calls = {"native": native["bfloat16"], "float32": native["float32"]}
    row(report, f"{op} bf16 beside fp32", calls, ROUNDS[op], HALF_TARGETS.get(op, {}))


def all_sizes(report: Report, op: str) -> None:
    """Against eager torch from 10^3 to 10^7 elements: never slower."""
    for elements, shape in SIZES.items():
        if report.options.quick and elements > 10**3:
            break
        for dtype, torch_dtype in DTYPES.items():
            calls: dict[str, Callable] = MAKERS[op](shape, torch_dtype, report.options.device)
            calls = {name: calls[name] for name in ("native", "eager")}
            row(report, f"{op} {elements} elements {dtype}", calls, 7, {"eager": 1.0})


def large_rows(report: Report, op: str) -> None:
    """The table's rows: the largest shape, in multiples of native."""
    for dtype in DTYPES:
        found = report.extra[f"{op} {LARGE} {dtype}"]
        for name, median in found["median_us"].items():
            report.add_row(
                {
                    "case": f"{op} {dtype}",
                    "name": name,
                    "ms": rounded(median / 1e3),
                    "quartiles_ms": [rounded(q / 1e3) for q in found["quartiles_us"][name]],
                    "base": "native",
                    "times_base": found["times_native"][name],
                }
            )


CASES = {op: partial(run, op) for op in MAKERS}
