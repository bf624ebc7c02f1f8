"""LoRA's kernel: exactly its expectation where A is orthogonal, and on average where A is drawn."""

import pytest
import torch
from explicit import close, jacobians
from tiny_models import SMALL, images, untouched

from roli_fast import peft
from roli_fast.analysis import lora_kernel
from roli_fast.analysis.lora_kernel import start_variance
from roli_fast.errors import ArgumentError
from roli_fast.models import Classifier, Model, create

METHOD = peft.LoRA(rank=2, alpha=6.0, targets=("q", "v", "mlp.fc2"))


def network() -> Classifier:
    options = SMALL["vit_tiny_patch16_224"] | {"depth": 1}
    return create(Model("vit_tiny_patch16_224", options=options), num_classes=3)


X = images(2, 3, 8, 8)


def test_the_expectation_by_full_gradients() -> None:
    """(alpha / r)^2 sigma_A^2 r times the inner products of gradients of the adapted rows."""
    model = network().double()
    block = "backbone.blocks.0"
    total = torch.zeros(6, 6).double()
    for name, width, rows in (
        ("attn.qkv", 16, [*range(16), *range(32, 48)]),  # q and v
        ("mlp.fc2", 64, [*range(16)]),
    ):
        weight = f"{block}.{name}.weight"
        found = jacobians(model, model.head_name, [weight], X.double()).of_logits
        chosen = found.view(6, -1, width)[:, rows].flatten(1)
        total += (6 / 2) ** 2 * 2 / (3 * width) * chosen @ chosen.t()
    with untouched(model):
        found = lora_kernel(model, METHOD, X.double(), draws=1)
    assert close(found.expected, total)
    assert found.scales == {f"{block}.attn.qkv": 9 * 2 / 48, f"{block}.mlp.fc2": 9 * 2 / 192}


def test_with_an_orthogonal_a_one_network_has_exactly_that_kernel() -> None:
    """A^T A = r sigma^2 I, which drawn entries have on average."""
    model = network().double()
    method = peft.LoRA(rank=16, alpha=24.0, targets=("q", "v"))
    expected = lora_kernel(model, method, X.double(), draws=1).expected
    names = peft.apply(model, method)
    drawn = model.get_parameter(next(name for name in names if "lora_a" in name))
    assert float(drawn.detach().var()) == pytest.approx(start_variance(16), rel=0.1)
    own = [name for name in names if "lora" in name]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        a = model.get_parameter(own[0])
        for slices in a.split(16):
            drawn = torch.randn(16, 16, generator=generator, dtype=torch.float64)
            slices.copy_((16 * start_variance(16)) ** 0.5 * torch.linalg.qr(drawn).Q)
    rows = jacobians(model, model.head_name, own, X.double()).of_logits
    assert close(rows @ rows.t(), expected)


def test_the_mean_over_draws_nears_it() -> None:
    found = lora_kernel(network(), METHOD, X, draws=20, dtype=torch.float64)
    single = sum(found.errors) / len(found.errors)
    assert found.error < 2 * single / 20**0.5 < 0.5 * single
    assert len(set(found.errors)) == 20
    again = lora_kernel(network(), METHOD, X, draws=2, dtype=torch.float64)
    assert again.errors == pytest.approx(found.errors[:2], rel=1e-9)
    other = lora_kernel(network(), METHOD, X, draws=2, dtype=torch.float64, seed=1)
    assert other.errors != again.errors


def test_what_it_refuses() -> None:
    with pytest.raises(ArgumentError, match="takes at most 1/8 of `memory`, 64 bytes"):
        lora_kernel(network(), METHOD, X, memory=64)
    adapted = network()
    peft.apply(adapted, METHOD)
    with pytest.raises(ArgumentError, match="`tuning`"):
        lora_kernel(adapted, METHOD, X)
