"""How far results may lie from the textbook formulas in fp64, for pixels in [0, 1].

One entry a dtype, for every op: a result is rounded once, by at most one spacing (half a one to
the nearest number, a whole one toward x; spacings just below 1 are eps / 2), from a value that
differs from the textbook's by the arithmetic of fp32 and the scale's safety, some 1e-6 of a
distance (fp64: 2^-33 of it).
"""

import torch

TEXTBOOK = {
    torch.float64: 2e-10,
    torch.float32: 2**-24 + 1e-6,
    torch.float16: 2**-11 + 1e-6,
    torch.bfloat16: 2**-8 + 1e-6,
}

OTHER_SUMS = 1e-3
"""Share of elements that may differ, by one spacing, where sums were made in another order.

Sums are fp64 and what follows from them is fp32, so a scale differs about once in 10^8 samples;
where one does, the last bit of some elements may follow.
"""

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
