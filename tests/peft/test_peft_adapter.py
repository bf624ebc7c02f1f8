"""The adapter's formula and place."""

from typing import Any

import pytest
import torch
from tiny_models import SIZES, SMALL, images, tiny
from torch import Tensor, nn
from torch.nn.functional import gelu

from roli_fast.errors import ArgumentError
from roli_fast.models import Model, create
from roli_fast.peft import Adapter, apply
from roli_fast.peft.adapter import Bottleneck


def test_the_bottleneck_starts_as_the_identity_with_a_random_down() -> None:
    layer = Bottleneck(64, 8, torch.Generator().manual_seed(0), torch.zeros(1))
    z = images(5, 64)
    assert torch.equal(layer(z), z)
    assert bool((layer.down.weight.abs() <= 1 / 8).all())
    assert abs(float(layer.down.weight.detach().std()) - 1 / 8 / 3**0.5) < 0.005


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_it_stands_after_the_mlp_inside_the_residual_branch(name: str) -> None:
    """h + adapter(mlp(norm(h))), worked out beside the block."""
    model = tiny(name).eval()
    apply(model, Adapter(4))
    block: Any = next(m for m in model.modules() if hasattr(m, "mlp"))
    adapter, mlp = block.mlp.adapter, block.mlp
    nn.init.normal_(adapter.up.weight)
    ends: dict[str, Tensor] = {}
    block.norm2.register_forward_pre_hook(lambda _, x: ends.setdefault("h", x[0]))
    block.register_forward_hook(lambda _m, _x, out: ends.setdefault("out", out))
    with torch.no_grad():
        model(images(2, 3, SIZES[name], SIZES[name]))
        h = ends["h"]
        z = mlp.fc2(gelu(mlp.fc1(block.norm2(h))))
        inner = gelu(z @ adapter.down.weight.T + adapter.down.bias)
        expected = h + z + inner @ adapter.up.weight.T + adapter.up.bias
    torch.testing.assert_close(ends["out"].reshape(expected.shape), expected, rtol=1e-5, atol=1e-5)


def test_every_block_gets_one_and_pooling_none() -> None:
    assert len(apply(tiny("convnext_atto"), Adapter(4))) == 4 * 4 + 2
    options = SMALL["vit_tiny_patch16_224"] | {"global_pool": "map", "class_token": False}
    pooled = create(Model("vit_tiny_patch16_224", options=options), num_classes=5)
    found = apply(pooled, Adapter(4))
    assert len(found) == 2 * 4 + 2 and not any("attn_pool" in n for n in found)
    with pytest.raises(ArgumentError, match="`reduction`.*got 0"):
        Adapter(0)
    with pytest.raises(ArgumentError, match="`reduction`: expected at most 16, the width of"):
        apply(tiny(), Adapter(17))
