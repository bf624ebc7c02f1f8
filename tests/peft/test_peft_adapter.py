"""The adapter's formula and place."""

import pytest
import torch
from tiny_models import SIZES, SMALL, images, tiny
from torch import Tensor, nn
from torch.nn.functional import gelu

from roli_fast.errors import ArgumentError
from roli_fast.models import Model, create
from roli_fast.peft import Adapter, apply
from roli_fast.peft.adapter import Bottleneck


def test_the_bottleneck_by_hand() -> None:
    """Width 2, one inner unit: z + up * gelu(down . z + c) + d, numbers worked out."""
    layer = Bottleneck(64, 8, torch.Generator().manual_seed(0), torch.zeros(1))
    z = images(5, 64)
    assert torch.equal(layer(z), z)  # at first, with a random down
    assert bool((layer.down.weight.abs() <= 1 / 8).all())
    assert abs(float(layer.down.weight.detach().std()) - 1 / 8 / 3**0.5) < 0.005
    layer = Bottleneck(2, 1, torch.Generator(), torch.zeros(1))
    with torch.no_grad():
        layer.down.weight.copy_(torch.tensor([[1.0, -1.0]]))
        layer.down.bias.fill_(0.5)
        layer.up.weight.copy_(torch.tensor([[2.0], [-1.0]]))
        layer.up.bias.copy_(torch.tensor([0.25, 0.0]))
    # down: 3 - 1 + 0.5 = 2.5; gelu(2.5) = 2.5 * Phi(2.5) = 2.5 * 0.9937903 = 2.4844758
    out = layer(torch.tensor([[3.0, 1.0]])).detach()
    expected = torch.tensor([[3 + 2 * 2.4844758 + 0.25, 1 - 2.4844758]])
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_it_stands_after_the_mlp_inside_the_residual_branch(name: str) -> None:
    """h + adapter(mlp(norm(h))), worked out beside the block."""
    model = tiny(name).eval()
    apply(model, Adapter(4))
    block = next(m for m in model.modules() if hasattr(m, "mlp"))
    adapter: Bottleneck = block.mlp.adapter  # type: ignore[union-attr, assignment]
    nn.init.normal_(adapter.up.weight)
    ends: dict[str, Tensor] = {}
    block.norm2.register_forward_pre_hook(  # type: ignore[union-attr, operator]
        lambda _, x: ends.setdefault("h", x[0])
    )
    block.register_forward_hook(lambda _m, _x, out: ends.setdefault("out", out))
    with torch.no_grad():
        model(images(2, 3, SIZES[name], SIZES[name]))
        h, mlp = ends["h"], block.mlp  # type: ignore[union-attr]
        z = mlp.fc2(gelu(mlp.fc1(block.norm2(h))))  # type: ignore[union-attr, operator]
        inner = gelu(z @ adapter.down.weight.T + adapter.down.bias)
        expected = h + z + inner @ adapter.up.weight.T + adapter.up.bias
    torch.testing.assert_close(ends["out"].reshape(expected.shape), expected, rtol=1e-5, atol=1e-5)


def test_every_block_gets_one_and_pooling_none() -> None:
    assert len(apply(tiny("convnext_atto"), Adapter(4))) == 4 * 4 + 2
    options = SMALL["vit_tiny_patch16_224"] | {"global_pool": "map", "class_token": False}
    pooled = create(Model("vit_tiny_patch16_224", options=options), num_classes=5)
    found = apply(pooled, Adapter(4))
    assert len(found) == 2 * 4 + 2 and not any("attn_pool" in n for n in found)


def test_refusals() -> None:
    with pytest.raises(ArgumentError, match="`reduction`.*got 0"):
        Adapter(0)
    with pytest.raises(ArgumentError, match="`reduction`: expected at most 16, the width of"):
        apply(tiny(), Adapter(17))
