"""Prompts against forwards that are written out, in fp64, for ViT and Swin."""

from typing import Any

import pytest
import torch
from tiny_models import SMALL, images, tiny
from torch import Tensor
from torch.nn.functional import softmax

from roli_fast.errors import ArgumentError
from roli_fast.models import Classifier, Model, create
from roli_fast.peft import Prompt, apply

VIT, SWIN = "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"
FORMS = [(deep, pooled) for deep in (False, True) for pooled in (False, True)]


def prompted(name: str, deep: bool, pooled: bool, **options: Any) -> Classifier:
    """fp64, eval mode, with weights large enough that attention is far from uniform."""
    model = tiny(name, **options).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
    apply(model, Prompt(tokens=3, deep=deep, pooled=pooled))
    return model


@pytest.mark.parametrize(("deep", "pooled"), FORMS)
@pytest.mark.parametrize("pool", ["token", "avg"])
def test_vit_written_out(deep: bool, pooled: bool, pool: str) -> None:
    config = {"global_pool": pool, "class_token": pool == "token", "fc_norm": False}
    model = create(Model(VIT, options=SMALL[VIT] | config), num_classes=5).double().eval()
    apply(model, Prompt(tokens=3, deep=deep, pooled=pooled))
    net: Any = model.backbone
    prompts = [block.prompt.tokens if hasattr(block, "prompt") else None for block in net.blocks]
    x = images(2, 3, 8, 8).double()
    tokens = net._pos_embed(net.patch_embed(model.normalize(x)))
    front = net.num_prefix_tokens
    cls, patches = tokens[:, :front], tokens[:, front:]
    for block, own in zip(net.blocks, prompts, strict=True):
        if own is not None:
            p = own.expand(2, -1, -1)
        joined = torch.cat((cls, p, patches), dim=1)
        joined = joined + block.attn(block.norm1(joined))
        joined = joined + block.mlp(block.norm2(joined))
        cls, p, patches = joined[:, :front], joined[:, front : front + 3], joined[:, front + 3 :]
    normed = net.norm(torch.cat((cls, p, patches), dim=1))
    last = normed[:, 0] if pool == "token" else normed[:, 0 if pooled else 3 :].mean(1)
    torch.testing.assert_close(model(x), net.head(last), rtol=1e-10, atol=1e-12)


def attend(attention: Any, tokens: Tensor, bias: Tensor) -> Tensor:
    """Softmax attention over the tokens (N, C) of one window, with `bias` (heads, N, N)."""
    width = tokens.shape[1] // attention.num_heads
    q, k, v = (
        part.reshape(len(tokens), -1, width).transpose(0, 1)
        for part in attention.qkv(tokens).chunk(3, dim=1)
    )
    weights = softmax(q @ k.transpose(1, 2) / width**0.5 + bias, dim=2)
    return attention.proj((weights @ v).transpose(0, 1).reshape(len(tokens), -1))


def window_bias(attention: Any, places: list[tuple[int, int]], regions: list[int]) -> Tensor:
    """Relative position bias of a window's tokens, -100 between regions, 0 for three prompts."""
    rows, columns = attention.window_size
    count = len(places)
    bias = torch.zeros(attention.num_heads, count + 3, count + 3, dtype=torch.float64)
    for i, (r, c) in enumerate(places):
        for j, (s, d) in enumerate(places):
            entry = (r - s + rows - 1) * (2 * columns - 1) + (c - d + columns - 1)
            bias[:, 3 + i, 3 + j] = attention.relative_position_bias_table[entry]
            bias[:, 3 + i, 3 + j] -= 100.0 * (regions[i] != regions[j])
    return bias


def block_written_out(block: Any, x: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """One Swin block for one image (H, W, C) and its prompts (3, C): window by window, token by
    token."""
    height, width, _ = x.shape
    (rows, columns), (down, right) = block.window_size, block.shift_size
    normed, prompts = block.norm1(x), block.norm1(p)
    out, copies = torch.zeros_like(x), []

    def region(at: int, size: int, window: int, shift: int) -> int:
        return 0 if not shift or at < size - window else 1 if at < size - shift else 2

    for top in range(0, height, rows):
        for left in range(0, width, columns):
            inside = [(r, c) for r in range(rows) for c in range(columns)]
            source = [((top + r + down) % height, (left + c + right) % width) for r, c in inside]
            regions = [
                10 * region(top + r, height, rows, down) + region(left + c, width, columns, right)
                for r, c in inside
            ]
            tokens = torch.cat((prompts, torch.stack([normed[place] for place in source])))
            done = attend(block.attn, tokens, window_bias(block.attn, inside, regions))
            copies.append(done[:3])
            for place, token in zip(source, done[3:], strict=True):
                out[place] = token
    x, p = x + out, p + torch.stack(copies).mean(0)
    return x + block.mlp(block.norm2(x)), p + block.mlp(block.norm2(p))


@pytest.mark.parametrize(("deep", "pooled"), FORMS)
def test_swin_written_out(deep: bool, pooled: bool) -> None:
    """Two stages of two blocks, the second of the first stage shifted; 8x8 tokens, windows of 4."""
    model = prompted(SWIN, deep, pooled)
    net: Any = model.backbone
    pixels = images(2, 3, 16, 16).double()
    assert net.layers[0].blocks[1].shift_size == (2, 2)
    expected = []
    with torch.no_grad():
        for x in net.patch_embed(model.normalize(pixels)):
            p = torch.zeros(0)
            for number, stage in enumerate(net.layers):
                if number:
                    merge = stage.downsample
                    four = [x[i::2, j::2] for j in (0, 1) for i in (0, 1)]
                    x = merge.reduction(merge.norm(torch.cat(four, dim=2)))
                    p = merge.reduction(merge.norm(torch.cat((p, p, p, p), dim=1)))
                for block in stage.blocks:
                    if hasattr(block, "prompt"):
                        p = block.prompt.tokens[0]
                    x, p = block_written_out(block, x, p)
            tokens = x.reshape(-1, x.shape[-1])
            tokens = torch.cat((p, tokens)) if pooled else tokens
            expected.append(net.head.fc(net.norm(tokens).mean(0)))
        torch.testing.assert_close(model(pixels), torch.stack(expected), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("pooled", [False, True])
def test_shallow_prompts_pass_checkpointed_stages(pooled: bool) -> None:
    """Between blocks travels a pair; recomputation must hand its gradients on."""
    grads = []
    for recompute in (False, True):
        model = prompted(SWIN, False, pooled)
        model.backbone.set_grad_checkpointing(recompute)  # type: ignore[operator]
        model(images(2, 3, 16, 16).double()).square().sum().backward()
        grads.append(model.get_parameter("backbone.layers.0.blocks.0.prompt.tokens").grad)
    assert bool(grads[0].any())
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("options", [{"dynamic_img_size": True}, {"always_partition": True}])
def test_swin_of_a_size_that_windows_do_not_divide(options: dict[str, bool]) -> None:
    model = create(Model(SWIN, options=SMALL[SWIN] | options | {"img_size": 20}), num_classes=5)
    apply(model.eval(), Prompt(tokens=3, deep=False))
    x = images(2, 3, 20, 20)
    with torch.no_grad():
        torch.testing.assert_close(model(x)[:1], model(x[:1]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [VIT, SWIN])
@pytest.mark.parametrize("deep", [False, True])
def test_where_prompts_stand_and_how_they_start(name: str, deep: bool) -> None:
    model = tiny(name)
    names = apply(model, Prompt(tokens=3, deep=deep))[:-2]
    assert len(names) == (1 if not deep else 2 if name == VIT else 4)
    widths = [16, 16] if name == VIT else [8, 8, 16, 16]
    shapes = [(1, 3, width) for width in widths][: len(names)]
    assert [tuple(model.get_parameter(n).shape) for n in names] == shapes
    patch, width = (4, 16) if name == VIT else (2, 8)
    bound = (6 / (3 * patch**2 + width)) ** 0.5
    for n in names:
        values = model.get_parameter(n).detach()
        assert bool((values.abs() <= bound).all()) and float(values.abs().max()) > bound / 2


def test_dropout_is_drawn_for_every_image() -> None:
    model = tiny()
    method = Prompt(tokens=3, dropout=0.5)
    apply(model, method)
    method.train_mode(model)
    tokens = model.get_submodule("backbone.blocks.0.prompt")(2)
    assert not torch.equal(tokens[0], tokens[1])
    tokens = model.eval().get_submodule("backbone.blocks.0.prompt")(2)
    assert torch.equal(tokens[0], tokens[1])


def test_refusals() -> None:
    with pytest.raises(ArgumentError, match="`tokens`.*got 0"):
        Prompt(tokens=0)
    with pytest.raises(ArgumentError, match=r"`dropout`.*got 1.0"):
        Prompt(dropout=1.0)
