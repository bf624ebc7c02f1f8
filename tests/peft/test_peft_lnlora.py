"""LNLoRA by hand."""

import torch
from torch import nn

from roli_fast.peft.lnlora import LNLoraLinear


def test_the_update_is_of_the_normalised_input() -> None:
    """LN([1, 3]) is -1, 1; A reads the second, B writes it twice and once into the last two rows,
    at a scale of a half. What the norm's weight does goes through it."""
    base = nn.Linear(2, 3, bias=False).double()
    draw = torch.Generator().manual_seed(0)
    layer = LNLoraLinear(base, ((1, 3),), 1, 0.5, 0.0, draw)
    x = torch.tensor([[1.0, 3.0]]).double()
    assert torch.equal(layer(x), base(x))  # B is zero at first
    with torch.no_grad():
        layer.lora_a.copy_(torch.tensor([[0.0, 1.0]]))
        layer.lora_b.copy_(torch.tensor([[2.0], [1.0]]))
        layer.lora_norm.weight.fill_(3.0)
    expected = base(x) + 0.5 * torch.tensor([[0.0, 6.0, 3.0]])
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=2e-5)  # LN's own epsilon
