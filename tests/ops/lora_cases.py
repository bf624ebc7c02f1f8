"""Layers for the tests of the LoRA ops, and their formula written another way, in fp64."""

import torch
from torch import Tensor

ROWS = {
    "all": None,
    "q and v": ((0, 8), (16, 24)),
    "out of order": ((18, 24), (1, 3)),
    "one": ((5, 6),),
}
OUT, IN, RANK = 24, 20, 3

LORA = {
    torch.float64: 1e-12,
    torch.float32: 2e-5,
    torch.float16: 2.5e-2,
    torch.bfloat16: 2e-1,
}
"""LoRA layers of width 20 with standard normal inputs, outputs of magnitude up to 20.

The inner products, the output and, where it is merged, the weight are each rounded to the dtype:
three to four roundings of numbers below 20 at most, 2^-9 (bf16), 2^-12 (fp16) or 2^-25 of each.
"""


def seeded(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def layer(
    rows=None,
    dtype: torch.dtype = torch.float32,
    *,
    batch: tuple[int, ...] = (3, 7),
    size: tuple[int, int, int] = (OUT, IN, RANK),
) -> dict[str, Tensor]:
    """x, weight, bias, a and b; both factors are far from zero."""
    out, width, rank = size
    ranges = rows or ((0, out),)
    covered = sum(stop - start for start, stop in ranges)

    def draw(*shape: int, number: int) -> Tensor:
        return torch.randn(shape, generator=seeded(number), dtype=torch.float64).to(dtype)

    return {
        "x": draw(*batch, width, number=1),
        "weight": draw(out, width, number=2) / width**0.5,
        "bias": draw(out, number=3),
        "a": draw(len(ranges) * rank, width, number=4) / width**0.5,
        "b": draw(covered, rank, number=5),
    }


def update(a: Tensor, b: Tensor, rows, shape: torch.Size) -> Tensor:
    """The sum of all B_i A_i, entry by entry where the ranges put them, in fp64."""
    rank, whole, done = b.shape[1], torch.zeros(shape, dtype=torch.float64), 0
    for place, (start, stop) in enumerate(rows or ((0, shape[0]),)):
        for row in range(start, stop):
            for r in range(rank):
                whole[row] += b[done + row - start, r].double() * a[place * rank + r].double()
        done += stop - start
    return whole


def exact(case: dict[str, Tensor], scale: float, rows, branch: Tensor | None = None) -> Tensor:
    """The layer's output in fp64; `branch` is what dropout makes of x."""
    wide = {name: value.double() for name, value in case.items()}
    branch = wide["x"] if branch is None else branch.double()
    added = update(case["a"], case["b"], rows, case["weight"].shape)
    return wide["x"] @ wide["weight"].T + wide["bias"] + scale * (branch @ added.T)
