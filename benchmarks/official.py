"""AutoAttack's components beside torchattacks' with the draws of the original: which flags differ.

    pip install --no-deps torchattacks requests
    python benchmarks/official.py MODEL --data image_folder --root cifar10 --images 256

No times: what is compared is who is fooled with `compat.original_draws`, at the published 100 steps
and 5000 queries, in fp32 and fp64. Each component attacks those that the official ones before it
left right ("chain"; APGD-DLR, which version standard lacks, after APGD-CE, as in version plus), and
each that the chain leaves little to do also attacks all images that are right ("alone"). A flag
that differs is listed with the margin of our image and of theirs (largest other logit minus the
label's; above 0 is fooled). `tests/attacks/official_chain.py` says where torchattacks is put right
first.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.report import machine
from roli_fast import models
from roli_fast.attacks import Attack
from roli_fast.compat.original_draws import OriginalAPGD, OriginalAutoAttack
from roli_fast.data import DATASETS

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "attacks"))
import oracle
from official_chain import peers

EPS = {"linf": 8 / 255, "l2": 0.5}
ALONE = ("apgd-t", "fab-t", "square")


def theirs(model: nn.Module, norm: str, args: argparse.Namespace) -> dict[str, Any]:
    """The official components by name, APGD-DLR in its place."""
    known = peers(model, norm, EPS[norm], args.steps, args.queries)
    library: Any = oracle.torchattacks()
    dlr = library.APGD(
        model, norm=oracle.PEER_NORM[norm], eps=EPS[norm], seed=0, steps=args.steps, loss="dlr"
    )
    first, *others = known
    return {first: known[first], "apgd-dlr": dlr, **{name: known[name] for name in others}}


def ours(norm: str, args: argparse.Namespace) -> dict[str, Attack]:
    """Ours, by the same names."""
    shared: dict[str, Any] = dict(norm=norm, eps=EPS[norm], seed=0)
    whole = OriginalAutoAttack(**shared, steps=args.steps, n_queries=args.queries)
    dlr = OriginalAPGD(**shared, steps=args.steps, loss="dlr")
    return {**dict(zip(whole.names, whole.parts, strict=True)), "apgd-dlr": dlr}


def compare(name: str, peer: Any, part: Attack, model: nn.Module, x: Tensor, y: Tensor) -> Any:
    """One component on images that are all right: counts, and the flags that differ."""
    started = time.perf_counter()
    with oracle.peer_in(x.dtype):
        found = peer(x, y)
    theirs = oracle.margins(model, found, y)
    between = time.perf_counter()
    result = part.run(model, x, y)
    mine = oracle.margins(model, result.x_adv, y)
    unlike = ((mine > 0) != (theirs > 0)).nonzero()[:, 0].tolist()
    row = {
        "attacked": len(x),
        "fooled_by_theirs": int((theirs > 0).sum()),
        "fooled_by_ours": int((mine > 0).sum()),
        "differ": [
            {"row": i, "our_margin": mine[i].item(), "their_margin": theirs[i].item()}
            for i in unlike
        ],
        "seconds": [round(between - started, 1), round(time.perf_counter() - between, 1)],
    }
    print(f"{name:10}{json.dumps(row)}", flush=True)
    return row, theirs < 0


def run(model: nn.Module, norm: str, x: Tensor, y: Tensor, args: argparse.Namespace) -> Any:
    """The chain, and the later components alone."""
    everyone = oracle.margins(model, x, y) < 0
    x, y = x[everyone], y[everyone]
    peer, mine = theirs(model, norm, args), ours(norm, args)
    report: dict[str, Any] = {"right": len(x), "chain": {}, "alone": {}}
    left = torch.ones_like(y, dtype=torch.bool)
    for name in peer:
        row, still = compare(name, peer[name], mine[name], model, x[left], y[left])
        report["chain"][name] = row
        left[left.clone()] = still
    for name in ALONE:
        report["alone"][name], _ = compare(name, peer[name], mine[name], model, x, y)
    return report


def main() -> None:
    """Run, write the JSON after every norm and precision."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="a best.safetensors of roli_fast.train")
    parser.add_argument("--data", default="image_folder")
    parser.add_argument("--root", required=True)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--queries", type=int, default=5000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--norms", default="linf,l2")
    parser.add_argument("--dtypes", default="float32,float64")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    source = DATASETS[args.data](root=args.root, image_size=args.size)  # type: ignore[call-arg]
    test = source.load().test
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))[: args.images]
    batch = test.plain().batch(order)
    report: dict[str, Any] = {
        "machine": machine("cpu", args.threads),
        "case": {k: v for k, v in vars(args).items() if k not in ("model", "root", "out")},
    }
    for dtype in args.dtypes.split(","):
        model = models.load(args.model).eval().requires_grad_(False).to(getattr(torch, dtype))
        for norm in args.norms.split(","):
            print(f"{norm}, {dtype}", flush=True)
            x = batch.x.to(getattr(torch, dtype))
            report[f"{norm} {dtype}"] = run(model, norm, x, batch.y, args)
            args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
