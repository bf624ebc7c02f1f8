"""Gradient checkpointing: the second forward of a block saves what the first one saved."""

from typing import Any

import pytest
import torch
from tiny_models import SIZES, Fused, images, tiny, untouched
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from roli_fast.engine import Engine, InputGradient
from roli_fast.engine.recomputing import is_recomputed

Y = torch.tensor([0, 3, 1, 4])
ENGINES = [
    Engine(fold=True),
    Engine(attention="products"),
    Engine(dtype=torch.bfloat16),
    Engine(dtype=torch.bfloat16, attention="products", merge=False),
]


@pytest.mark.parametrize("engine", ENGINES, ids=str)
@pytest.mark.parametrize("name", SIZES)
def test_an_attack(name: str, engine: Engine) -> None:
    model, x = tiny(name), images(4, 3, SIZES[name], SIZES[name])
    grads = []
    for recompute in (False, True):
        model.backbone.set_grad_checkpointing(recompute)  # type: ignore[operator]
        with untouched(model), InputGradient(engine.bind(model)) as gradient:
            gradient(x, Y)  # the lanes learn
            grads.append(gradient(x, Y)[0])
    assert functional.cosine_similarity(*(g.flatten(1) for g in grads)).min() > 0.98


@pytest.mark.parametrize("engine", ENGINES, ids=str)
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_training(name: str, engine: Engine) -> None:
    x, grads = images(4, 3, SIZES[name], SIZES[name]), []
    for recompute in (False, True):
        model = tiny(name)
        model.backbone.set_grad_checkpointing(recompute)  # type: ignore[operator]
        with torch.random.fork_rng(), engine.training(torch.device("cpu")):
            torch.manual_seed(0)  # of stochastic depth
            loss = functional.cross_entropy(model(x).float(), Y)
        loss.backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))  # type: ignore[union-attr]
    assert functional.cosine_similarity(*grads, dim=0) > 0.98


def test_only_blocks_that_are_computed_again_are_left_to_torch() -> None:
    seen: list[bool] = []

    def block(x: Any) -> Any:
        seen.append(is_recomputed())
        return functional.scaled_dot_product_attention(x, x, x)

    x = images(1, 1, 4, 8).requires_grad_()
    with Engine(attention="products").training(torch.device("cpu")), Fused() as counted:
        block(x)
        assert counted.count == 0
        out = checkpoint(block, x, use_reentrant=False)
        assert counted.count == 1
    torch.autograd.grad(out.sum(), x)  # type: ignore[union-attr]
    assert seen[:2] == [False, True] and not is_recomputed()
