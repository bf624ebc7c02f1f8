"""LoRA beside Hugging Face PEFT on the same timm network: a PGD-7 attack and a training step.

    pip install -e '.[bench]'
    python benchmarks/lora.py [--model vit_base_patch16_224 --batch 4] [--device cuda] [--autocast]

All candidates run interleaved in one process; the table shows medians, and medians of the ratios
within a round. Peak memory is that of a process of its own for each candidate (CPU), or of torch's
allocator (CUDA). Attacks freeze the weights for everybody: all compute input gradients only.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import timing
import torch
from torch import Tensor, nn

from roli_fast import ops
from roli_fast.engine import Engine, InputGradient
from roli_fast.models import Classifier, Model, create
from roli_fast.peft import LoRA, apply

Call = Callable[[], object]
RANK, STEPS, EPS, CLASSES = 16, 7, 4 / 255, 100
PLAIN = Engine()
LAYERS = ("qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
TARGETS = {"attack": {"base": 1.03, "peft": 0.74}, "train": {"peft": 1.0, "peft dropout": 1.0}}
"""At most so many times the other's seconds; peft: 1 / 1.35, for ViT-tiny with all layers."""


def network(args: argparse.Namespace) -> Classifier:
    """Random weights, the same every time."""
    torch.manual_seed(0)
    return create(Model(args.model), num_classes=CLASSES).to(args.device)


def ours(args: argparse.Namespace, dropout: float) -> Classifier:
    """Our LoRA on every linear layer of the blocks."""
    model = network(args)
    apply(model, LoRA(rank=RANK, alpha=RANK, dropout=dropout, targets=LAYERS))
    return model


def theirs(args: argparse.Namespace, dropout: float) -> nn.Module:
    """PEFT's LoRA on the same layers, with the head."""
    from peft import LoraConfig, get_peft_model

    model = network(args)
    config = LoraConfig(r=RANK, lora_alpha=RANK, lora_dropout=dropout, target_modules=list(LAYERS))
    adapted = get_peft_model(model, config)
    model.head.requires_grad_(True)
    return adapted


def attack(args: argparse.Namespace, model: nn.Module, engine: Engine = PLAIN) -> Call:
    """PGD-7 with our engine and step, whatever the model."""
    x, y = images(args)

    def run() -> Tensor:
        x_adv = x.clone()
        with cast(args), InputGradient(engine.bind(model)) as gradient, torch.no_grad():
            for _ in range(STEPS):
                grad, _, _ = gradient(x_adv, y)
                ops.linf_step_(x_adv, grad, x, eps=EPS, step_size=EPS / 4)
        return x_adv

    return run


def merged_attack(args: argparse.Namespace, model: nn.Module) -> Call:
    """PEFT's own way to merge: into the weights and out again, which drifts."""
    inner = attack(args, model)

    def run() -> None:
        model.merge_adapter()  # type: ignore[operator]
        inner()
        model.unmerge_adapter()  # type: ignore[operator]

    return run


def training(args: argparse.Namespace, model: nn.Module) -> Call:
    """One step of AdamW on whatever requires grad."""
    x, y = images(args)
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        with cast(args):
            loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()

    return run


def images(args: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """A batch of noise."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(args.batch, 3, 224, 224, generator=generator)
    return x.to(args.device), torch.arange(args.batch, device=args.device) % CLASSES


def cast(args: argparse.Namespace) -> torch.autocast:
    """bf16 if asked for."""
    return torch.autocast(args.device, torch.bfloat16, enabled=args.autocast)


CANDIDATES: dict[str, dict[str, Callable[[argparse.Namespace], Call]]] = {
    "attack": {
        "roli_fast": lambda args: attack(args, ours(args, 0.0)),
        "base": lambda args: attack(args, network(args)),
        "unmerged": lambda args: attack(args, ours(args, 0.0), Engine(merge=False)),
        "peft": lambda args: attack(args, theirs(args, 0.0)),
        "peft merged": lambda args: merged_attack(args, theirs(args, 0.0)),
    },
    "train": {
        "roli_fast": lambda args: training(args, ours(args, 0.0)),
        "peft": lambda args: training(args, theirs(args, 0.0)),
        "roli_fast dropout": lambda args: training(args, ours(args, 0.1)),
        "peft dropout": lambda args: training(args, theirs(args, 0.1)),
    },
}


def against(name: str) -> str:
    """The candidate of ours that another is compared with."""
    return "roli_fast dropout" if name.endswith("dropout") else "roli_fast"


def measure(calls: dict[str, Call], args: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of every candidate in every round."""
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(args.rounds):
        for name, call in calls.items():
            times[name].append(timing.seconds(call, 1, args.device))
    return times


def peak(args: argparse.Namespace, kind: str, name: str) -> float:
    """Most memory that two calls take beyond the imports, in MB."""
    if args.device == "cuda":
        call = CANDIDATES[kind][name](args)
        torch.cuda.reset_peak_memory_stats()
        call(), call()
        return torch.cuda.max_memory_allocated() / 1e6
    command = [sys.executable, __file__, *sys.argv[1:], "--alone", kind, name]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def alone(args: argparse.Namespace) -> float:
    """What the process of `peak` prints."""
    if "peft" in args.alone[1]:
        import peft  # noqa: F401 - its size is not the model's
    before = most_resident()
    call = CANDIDATES[args.alone[0]][args.alone[1]](args)
    call(), call()
    return most_resident() - before


def most_resident() -> float:
    """MB of this process at its largest. `ru_maxrss` would begin with what its parent had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1e3 for line in lines if line.startswith("VmHWM"))


def run(args: argparse.Namespace, kind: str) -> dict[str, object]:
    """Measure one kind of step and print a row for each candidate."""
    calls = {name: make(args) for name, make in CANDIDATES[kind].items()}
    times = measure(calls, args)
    del calls
    result: dict[str, object] = {}
    for name, values in times.items():
        pairs = zip(times[against(name)], values, strict=True)
        share = statistics.median(mine / other for mine, other in pairs)
        goal = TARGETS[kind].get(name)
        row = {
            "median_ms": round(statistics.median(values) * 1e3, 1),
            "quartiles_ms": [round(q * 1e3, 1) for q in statistics.quantiles(values, n=4)[::2]],
            "ours_over_this": round(share, 3),
            "target": goal,
            "met": goal is None or share <= goal,
            "peak_mb": round(peak(args, kind, name), 1) if args.memory else None,
        }
        result[name] = row
        verdict = "" if goal is None else ("  target met" if row["met"] else "  TARGET MISSED")
        print(
            f"{kind:8}{name:20}{row['median_ms']:10.1f} ms  ours takes {share:.3f} of it"
            f"  peak {row['peak_mb']} MB{verdict}",
            flush=True,
        )
    return result


def main() -> None:
    """Run, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="vit_tiny_patch16_224")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--autocast", action="store_true", help="bf16")
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--out", default="", help="JSON file; by default one in results/")
    parser.add_argument("--alone", nargs=2, metavar=("KIND", "NAME"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.alone:
        print(alone(args))
        return
    report: dict[str, object] = {
        "machine": timing.machine(args.device, args.threads),
        "case": {k: v for k, v in vars(args).items() if k not in ("out", "alone")},
    }
    for kind in CANDIDATES:
        report[kind] = run(args, kind)
    name = f"lora-{args.model}-{args.device}{'-bf16' if args.autocast else ''}.json"
    path = Path(args.out or Path(__file__).parent / "results" / name)
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
