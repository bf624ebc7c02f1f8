"""The CUDA kernels by themselves: time on the device without launches, beside copies of the bytes;
LoRA's layer beside cuBLAS; and which kernels an attack and an update spend their time in.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from groups.gpu import BATCH, NETWORK, STEPS
from groups.ops import MAKERS
from groups.pgd import BFLOAT16
from groups.train import METHODS
from harness import ours
from harness.networks import images, network
from harness.report import Report, rounded
from harness.timing import Call
from roli_fast import ops

SHAPES = {"256x3x32x32": (256, 3, 32, 32), "64x3x224x224": (64, 3, 224, 224)}
QUICK_SHAPES = {"2x3x8x8": (2, 3, 8, 8)}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
CALLS, ROUNDS, TOP = 20, 9, 25

COPIED = {"linf_step_": 4, "l2_step_": 4, "l2_project_": 3, "apgd_linf_step_": 5}
COPIED |= {"apgd_l2_step_": 5, "select_best_": 2, "l1_project_": 4, "l1_step_": 6}
COPIED |= {f"{norm}_random_start": 2 for norm in ("linf", "l2", "l1")}
COPIED |= {f"fab_{norm}_step_": 6 for norm in ("linf", "l2", "l1")}
"""Tensors of the images' size that the copies beside each op read and write; see `op_cases`."""


def seconds(call: Call, device: str) -> float:
    """Of one call, the median of `ROUNDS`: on a GPU of `CALLS` in a graph, between two events."""
    for _ in range(3):
        call()
    if device != "cuda":
        return statistics.median(_by_the_clock(call) for _ in range(3))

    def several() -> None:
        for _ in range(CALLS):
            call()

    graph, stream, replay = torch.cuda.CUDAGraph(), torch.cuda.Stream(), several
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    try:
        with torch.cuda.graph(graph, stream=stream):
            several()
        replay = graph.replay
    except RuntimeError as error:
        print(f"no graph, with the time of launches: {error}", flush=True)
    found = []
    for _ in range(ROUNDS + 1):  # the first one loads it
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        replay()
        end.record()
        end.synchronize()
        found.append(start.elapsed_time(end) / 1e3 / CALLS)
    return statistics.median(found[1:])


def _by_the_clock(call: Call) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def every_op(report: Report) -> None:
    """Each op in two shapes and two dtypes: GB/s of the bytes that it has to move at least, and
    what share of a copy's rate that is."""
    device, quick, expected = report.options.device, report.options.quick, predicted()
    for shape, sizes in (QUICK_SHAPES if quick else SHAPES).items():
        for op in MAKERS:
            for short, dtype in DTYPES.items():
                row: dict[str, Any] = {"case": f"{op} {shape} {short}", "name": "native"}
                try:
                    calls = MAKERS[op](sizes, dtype, device)
                    own, copy = (seconds(calls[name], device) for name in ("native", "copy"))
                except Exception as error:  # the other ops are measured all the same
                    report.add_row(row | {"note": f"failed: {error}"})
                    report.extra["failed"] = report.extra.get("failed", 0) + 1
                    continue
                moved = COPIED[op] * torch.Size(sizes).numel() * dtype.itemsize
                row |= {"ms": rounded(1e3 * own), "copy_ms": rounded(1e3 * copy)}
                row |= {"base": "copy_", "times_base": rounded(own / copy)}
                row["note"] = f"{moved / own / 1e9:.0f} GB/s, {100 * copy / own:.0f} % of copy_"
                row["note"] += expected.get((op, short), "")
                report.add_row(row)
        report.save()


def predicted() -> dict[tuple[str, str], str]:
    """What the machine code lets an op reach, by op and dtype, where it can be read here."""
    try:
        from sass_model import predictions

        found = predictions()
    except (ImportError, FileNotFoundError) as error:
        print(f"nothing is predicted: {error}", flush=True)
        return {}
    return {(p.op, p.dtype): f", predicted at most {100 * p.of_least:.0f} %" for p in found}


LAYERS = {"proj": (768, 768), "qkv": (768, 2304), "fc1": (768, 3072), "fc2": (3072, 768)}
"""Of ViT-B: columns and rows of the weight."""


def layers(report: Report) -> None:
    """A LoRA layer forward and backward, to x, A and B: ours beside five products by cuBLAS."""
    device, quick = report.options.device, report.options.quick
    rows, rank = (6, 2) if quick else (BATCH * 197, 16)
    for name, sizes in ({"proj": (8, 8)} if quick else LAYERS).items():
        for short, dtype in DTYPES.items():
            own, cublas = _layer(*sizes, rows=rows, rank=rank, device=device, dtype=dtype)
            row = {"case": f"LoRA {name} {short}", "name": "native", "ms": rounded(1e3 * own)}
            report.add_row(row | {"base": "cuBLAS", "times_base": rounded(own / cublas)})
        report.save()


def _layer(
    width: int, out: int, *, rows: int, rank: int, device: str, dtype: torch.dtype
) -> tuple[float, float]:
    """Seconds of forward and backward, ours and by cuBLAS."""
    draw = torch.Generator().manual_seed(0)
    shapes = ((rows, width), (out, width), (out,), (rank, width), (out, rank), (rows, out))
    made = [torch.randn(s, generator=draw).to(device, dtype) / s[-1] ** 0.5 for s in shapes]
    x, weight, bias, a, b, dy = made
    followed = [tensor.requires_grad_(True) for tensor in (x, a, b)]

    def mine() -> Tensor:
        return ops.lora_linear(x, weight, bias, a, b, scale=1.0)

    def plain() -> Tensor:
        return functional.linear(x, weight, bias) + functional.linear(functional.linear(x, a), b)

    def both(layer: Callable[[], Tensor]) -> object:
        return torch.autograd.grad(layer(), followed, dy)

    return seconds(partial(both, mine), device), seconds(partial(both, plain), device)


def profile(report: Report) -> None:
    """The kernels that take the most time, in a bf16 PGD-7 on ViT-B and in an update of LoRA under
    one step of it."""
    options = report.options
    x, y = images(NETWORK, 2 if options.quick else BATCH, options)
    attack = ours.pgd(network(NETWORK, options), STEPS, BFLOAT16)
    model: nn.Module = network(NETWORK, options)
    update = ours.training(model, x, y, METHODS["lora"], ours.linf(1), passes=BFLOAT16)
    cases: dict[str, Call] = {"PGD-7 in bf16": lambda: attack(x, y), "LoRA update in bf16": update}
    on_gpu = options.device == "cuda"
    activities = [torch.profiler.ProfilerActivity.CUDA if on_gpu else _CPU]
    key = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
    for name, call in cases.items():
        for _ in range(1 if options.quick else 3):  # the third attack is a replay
            call()
        with torch.profiler.profile(activities=activities) as found:
            call()
            torch.cuda.synchronize() if on_gpu else None
        table = found.key_averages().table(
            sort_by=key, row_limit=TOP, max_name_column_width=70, max_src_column_width=0
        )
        report.extra[name] = table.splitlines()
        print(name, table, sep="\n", flush=True)
        report.save()


_CPU = torch.profiler.ProfilerActivity.CPU

CASES = {"ops": every_op, "LoRA layers": layers, "profile": profile}
