"""The fused ops against what a user would otherwise write: `python benchmarks/ops.py`.

One interleaved run: every round times each candidate once, so that a slow moment of the machine
hits all of them. Prints medians and writes benchmarks/results/ops-<device>.json.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import l1
import l2
import torch
from torch import Tensor

import roli_fast
from roli_fast import ops

EPS, STEP = 8 / 255, 2 / 255
SHAPES = {"1x3x4x4": (1, 3, 4, 4), "64x3x32x32": (64, 3, 32, 32), "64x3x224x224": (64, 3, 224, 224)}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TARGETS = {
    "linf_step_ 64x3x32x32": {"eager": 4.0},
    "linf_step_ 64x3x224x224": {"eager": 15.0, "copy": 1 / 1.3},
    **l1.TARGETS,
    **l2.TARGETS,
}
SHORTEST = 2e-3  # seconds; quicker calls are repeated up to this before the clock is read
ROUNDS = dict.fromkeys(l1.CASES, l1.ROUNDS) | dict.fromkeys(l2.CASES, l2.ROUNDS)
Call = Callable[[], object]


def eager_step(x_adv: Tensor, grad: Tensor, x: Tensor) -> Tensor:
    """The Linf step of PGD as torchattacks writes it."""
    adv_images = x_adv.detach() + STEP * grad.sign()
    delta = torch.clamp(adv_images - x, min=-EPS, max=EPS)
    return torch.clamp(x + delta, min=0, max=1).detach()


def eager_step_in_place(x_adv: Tensor, grad: Tensor, x: Tensor) -> None:
    """The same, for a compiler that may write the result where the input was."""
    x_adv.copy_(eager_step(x_adv, grad, x))


def candidates(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> dict[str, Call]:
    """What is timed; each call has memory of its own."""
    generator = torch.Generator().manual_seed(0)
    x, grad = torch.rand(shape, generator=generator), torch.randn(shape, generator=generator)
    x, grad = x.to(device, dtype), grad.to(device, dtype)
    x_adv = [x.clone() for _ in range(4)]
    copies = [torch.empty_like(x) for _ in range(2)]
    compiled, compiled_in_place = torch.compile(eager_step), torch.compile(eager_step_in_place)

    def copy() -> None:  # the op reads three tensors and writes one: two copies move as much
        copies[0].copy_(x)
        copies[1].copy_(grad)

    return {
        "native": lambda: ops.linf_step_(x_adv[0], grad, x, eps=EPS, step_size=STEP),
        "eager": lambda: eager_step(x_adv[1], grad, x),
        "inductor": lambda: compiled(x_adv[2], grad, x),
        "inductor in place": lambda: compiled_in_place(x_adv[3], grad, x),
        "copy": copy,
    }


def seconds(call: Call, repeats: int, device: str) -> float:
    """Seconds for one call."""
    synchronize = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    synchronize()
    started = time.perf_counter()
    for _ in range(repeats):
        call()
    synchronize()
    return (time.perf_counter() - started) / repeats


def measure(calls: dict[str, Call], rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds of every candidate in every round."""
    repeats = {}
    for name, call in calls.items():
        seconds(call, 3, device)  # compile, touch the memory
        repeats[name] = max(1, round(SHORTEST / seconds(call, 3, device)))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(seconds(call, repeats[name], device))
    return times


def summary(times: dict[str, list[float]], targets: dict[str, float]) -> dict[str, object]:
    """Medians in microseconds, and how many times slower than native each candidate is."""
    ratios = {
        name: statistics.median(t / n for t, n in zip(values, times["native"], strict=True))
        for name, values in times.items()
    }
    return {
        "median_us": {n: round(statistics.median(v) * 1e6, 2) for n, v in times.items()},
        "quartiles_us": {
            n: [round(q * 1e6, 2) for q in statistics.quantiles(v, n=4)[::2]]
            for n, v in times.items()
        },
        "times_native": {n: round(ratio, 2) for n, ratio in ratios.items()},
        "targets": {n: round(target, 3) for n, target in targets.items()},
        "met": all(ratios[name] >= target for name, target in targets.items()),
    }


def machine(device: str, threads: int) -> dict[str, object]:
    """Where and with what the numbers were taken."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "cpu": models[0] if models else platform.processor(),
        "cpus": os.cpu_count(),
        "threads": threads,
        "load_before": [round(load, 2) for load in os.getloadavg()],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "roli_fast": getattr(roli_fast, "__version__", "source tree"),
        "build": ops.build_info(),
    }


def run(op: str, cases: Callable, args: argparse.Namespace, report: dict[str, object]) -> None:
    """Measure one op in every shape and dtype, and print a row for each."""
    rounds = min(args.rounds, ROUNDS.get(op, args.rounds))
    for shape in SHAPES:
        for dtype in DTYPES:
            chosen = ops.backend(op, args.device, DTYPES[dtype])
            if chosen.name != "native":
                raise SystemExit(f"nothing to measure: {chosen.reason}")
            times = measure(cases(SHAPES[shape], DTYPES[dtype], args.device), rounds, args.device)
            goals = TARGETS.get(f"{op} {shape}", {}) if dtype == "float32" else {}
            result = report[f"{op} {shape} {dtype}"] = summary(times, goals)
            cells = "".join(
                f"  {n} {result['median_us'][n]:.1f} us {result['times_native'][n]:.2f}x"  # type: ignore
                for n in times
            )
            met = "" if not goals else ("  targets met" if result["met"] else "  TARGETS MISSED")
            print(f"{op:18}{shape:14}{dtype:10}{cells}{met}", flush=True)


def main() -> None:
    """Run, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--only", default="", help="ops whose name contains this")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    report: dict[str, object] = {"machine": machine(args.device, args.threads)}
    for op, cases in {"linf_step_": candidates, **l2.CASES, **l1.CASES}.items():
        if args.only in op:
            run(op, cases, args, report)
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    path = folder / f"ops-{args.device}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(f"medians in us, and multiples of native; written to {path}")


if __name__ == "__main__":
    main()
