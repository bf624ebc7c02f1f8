"""LoRA on ranges of output rows, written as one LoRA on the whole layer, and back.

With slices i = 1..k of rank r, B_1 A_1 ... B_k A_k in their rows equals B A, where A stacks the A_i
and B (out, k * r) has B_i in the rows of slice i and the columns of A_i, zeros elsewhere.
"""

import torch
from torch import Tensor

from roli_fast.peft.lora_linear import Rows


def join_b(b: Tensor, rows: Rows, out: int) -> Tensor:
    """B_i stacked (covered rows, r) -> (out, k * r)."""
    rank = b.shape[1]
    whole = b.new_zeros(out, len(rows) * rank)
    at = 0
    for i, (start, stop) in enumerate(rows):
        whole[start:stop, i * rank : (i + 1) * rank] = b[at : at + stop - start]
        at += stop - start
    return whole


def split_b(whole: Tensor, rows: Rows) -> Tensor | None:
    """The inverse of `join_b`; None where there is something outside the blocks."""
    rank = whole.shape[1] // len(rows)
    rest, parts = whole.clone(), []
    for i, (start, stop) in enumerate(rows):
        block = rest[start:stop, i * rank : (i + 1) * rank]
        parts.append(block.clone())
        block.zero_()
    return None if rest.any() else torch.cat(parts)
