"""What every registered tuning method must do, on a ViT, a Swin and a network with BN."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers.drop import DropPath
from tiny_models import METHOD_OPTIONS, SIZES, images, tiny
from torch.nn.functional import cross_entropy

from roli_fast.engine import InputGradient
from roli_fast.errors import ArgumentError
from roli_fast.models import Classifier, load, save_model
from roli_fast.peft import METHODS, Method, apply

Y = torch.tensor([0, 4, 2, 1, 3, 0])


NETWORKS = ("vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "resnet18")
REFUSED = {("adapter", "resnet18"), ("lora", "resnet18"), ("prompt", "resnet18")}
PAIRS = [(m, n) for m in METHODS for n in NETWORKS if (m, n) not in REFUSED]


@pytest.fixture(params=PAIRS, ids="-".join)
def pair(request: pytest.FixtureRequest) -> tuple[str, str]:
    return request.param


@pytest.fixture
def method(pair: tuple[str, str]) -> Method:
    return METHODS[pair[0]](**METHOD_OPTIONS.get(pair[0], {}))


@pytest.fixture
def name(pair: tuple[str, str]) -> str:
    return pair[1]


def data(name: str) -> torch.Tensor:
    return images(len(Y), 3, SIZES[name], SIZES[name])


def logits(model: Classifier, x: torch.Tensor) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(x)


def train(model: Classifier, method: Method, x: torch.Tensor, steps: int = 2) -> None:
    """Some steps of Adam in the method's own mode: they move a tensor unless its gradient is 0."""
    chosen = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(chosen, lr=1e-3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(steps):
            method.train_mode(model)
            optimizer.zero_grad()
            cross_entropy(model(x), Y).backward()
            optimizer.step()


def tensors(model: Classifier) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_the_names_are_the_trainable_set(method: Method, name: str) -> None:
    """Also where it follows another, as in RoLI's second stage; no other tensor gets a gradient."""
    model = tiny(name)
    apply(model, METHODS["linear"]())
    names = apply(model, method)
    trainable = [n for n, p in model.named_parameters() if p.requires_grad]
    assert sorted(names) == sorted(trainable) and len(set(names)) == len(names)
    head = {f"{model.head_name}.{part}" for part in ("weight", "bias")}
    assert head <= set(names)
    train(model, method, data(name), steps=1)
    with_grad = [n for n, p in model.named_parameters() if p.grad is not None]
    assert sorted(with_grad) == sorted(names)


def test_the_function_is_unchanged_at_first(method: Method, name: str) -> None:
    """Stage 2 starts from exactly the function that stage 1 ended with."""
    model, x = tiny(name), data(name)
    before = logits(model, x)
    apply(model, method)
    assert torch.equal(logits(model, x), before) == method.keeps_function


def test_every_trainable_tensor_moves_within_two_steps(method: Method, name: str) -> None:
    """A tensor that never gets a gradient is dead weight (the release's LoRA was)."""
    model, x = tiny(name), data(name)
    names = apply(model, method)
    before = tensors(model)
    train(model, method, x)
    after = tensors(model)
    assert [n for n in names if torch.equal(before[n], after[n])] == []


def test_everything_else_stays_bit_for_bit(method: Method, name: str) -> None:
    """Frozen parameters, and the statistics of every BN that the method holds in eval mode."""
    model, x = tiny(name), data(name)
    names = set(apply(model, method))
    before = tensors(model)
    method.train_mode(model)
    live = {n for n, module in model.named_modules() if module.training}
    train(model, method, x)
    after = tensors(model)
    moved = {n for n in after if not torch.equal(before[n], after[n])} - names
    assert {n for n in moved if n.rpartition(".")[0] not in live} == set()
    assert moved <= {n for n, _ in model.named_buffers()}


@pytest.mark.parametrize(("key", "name"), sorted(REFUSED))
def test_a_network_that_a_method_cannot_serve_is_refused_with_the_reason(
    key: str, name: str
) -> None:
    model = tiny(name)
    before = tensors(model)
    with pytest.raises(ArgumentError, match=f"{name}.*use "):
        apply(model, METHODS[key](**METHOD_OPTIONS.get(key, {})))
    assert before.keys() == model.state_dict().keys()
    assert all(p.requires_grad for p in model.parameters())


def test_new_values_depend_on_the_seed_alone(method: Method, name: str) -> None:
    """The global random state is neither used nor moved."""
    states = []
    for seed in (0, 0, 1):
        model = tiny(name)
        torch.rand(3)
        state = torch.get_rng_state()
        apply(model, method, seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        states.append(tensors(model))
    plain = tensors(tiny(name)).keys()
    drawn = [n for n in states[0].keys() - plain if bool(states[0][n].any())]
    assert all(torch.equal(states[0][n], states[1][n]) for n in states[0])
    assert not any(torch.equal(states[0][n], states[2][n]) for n in drawn)


def test_what_is_inserted_keeps_timms_names(method: Method, name: str) -> None:
    """A plain state dict still has its place, so weights can be loaded before or after."""
    model = tiny(name)
    plain = tensors(model)
    names = apply(model, method)
    state = model.state_dict()
    assert all(torch.equal(state[n], tensor) for n, tensor in plain.items())
    assert state.keys() - plain.keys() <= set(names)


def test_what_inserts_cannot_be_applied_twice(method: Method, name: str) -> None:
    model = tiny(name)
    plain = model.state_dict().keys()
    apply(model, method)
    once = tensors(model)
    if once.keys() == plain:
        apply(model, method)
    else:
        with pytest.raises(ArgumentError, match="`tuning`"):
            apply(model, method)
    assert tensors(model).keys() == once.keys()


def test_the_backbone_is_updated_in_the_mode_that_the_fields_say(method: Method, name: str) -> None:
    model = tiny(name)
    apply(model, method)
    shown: Any = method
    for changes in ({}, {"batch_norm": True}, {"drop_path": True}, {"backbone_dropout": True}):
        chosen = replace(shown, **changes)
        chosen.train_mode(model)
        kinds = {
            torch.nn.BatchNorm2d: chosen.batch_norm,
            DropPath: chosen.drop_path,
            torch.nn.Dropout: chosen.backbone_dropout,
        }
        for kind, active in kinds.items():
            modes = [m.training for m in model.modules() if isinstance(m, kind)]
            assert modes == [active] * len(modes)


def test_the_attack_sees_no_dropout(method: Method, name: str) -> None:
    """Whatever is random in updates is off in the attack, and comes back afterwards."""
    model, x = tiny(name), data(name)
    names = apply(model, method)
    train(model, method, x)
    expected = logits(model, x)
    method.train_mode(model)
    modes = [m.training for m in model.modules()]
    with InputGradient(model) as gradient:
        _, _, first = gradient(x, Y)
        _, second = gradient.evaluate(x, Y)
    torch.testing.assert_close(first, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(second, expected, rtol=1e-5, atol=1e-6)
    assert modes == [m.training for m in model.modules()]
    assert sorted(names) == sorted(n for n, p in model.named_parameters() if p.requires_grad)


def test_bf16_autocast(method: Method, name: str) -> None:
    """Logits within bf16's rounding of fp32's, and a finite gradient for every tensor."""
    model, x = tiny(name), data(name)
    names = apply(model, method)
    exact = logits(model, x)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(x)
        cross_entropy(found, Y).backward()
    torch.testing.assert_close(found.float(), exact, rtol=0.05, atol=0.05)
    assert all(bool(model.get_parameter(n).grad.isfinite().all()) for n in names)  # type: ignore[union-attr]


def test_gradient_checkpointing_changes_nothing(method: Method, name: str) -> None:
    """The same masks are drawn in the recomputation."""
    grads = []
    for recompute in (False, True):
        model, x = tiny(name), data(name)
        names = apply(model, method)
        model.backbone.set_grad_checkpointing(recompute)  # type: ignore[operator]
        train(model, method, x)
        grads.append([model.get_parameter(n).grad for n in names])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("training", [False, True])
def test_what_is_inserted_takes_the_modes_around_it(
    method: Method, name: str, training: bool
) -> None:
    model = tiny(name).train(training)
    apply(model, method)
    assert {m.training for m in model.modules()} == {training}


def test_a_copy_is_another_model(method: Method, name: str) -> None:
    """Hooks and classes go with a deep copy and point at the copy."""
    model, x = tiny(name), data(name)
    apply(model, method)
    before = logits(model, x)
    copied = copy.deepcopy(model)
    train(copied, method, x)
    assert torch.equal(logits(model, x), before)
    assert not torch.equal(logits(copied, x), before)


def test_a_saved_model_loads_again(method: Method, name: str, tmp_path: Path) -> None:
    model, x = tiny(name), data(name)
    apply(model, method, seed=3)
    train(model, method, x)
    save_model(model, tmp_path / "model.safetensors", classes=tuple("abcde"))
    again = load(tmp_path / "model.safetensors")
    assert torch.equal(logits(again, x), logits(model, x))
    assert again.card["classes"] == list("abcde")
    save_model(again, tmp_path / "again.safetensors", classes=tuple("abcde"))
    assert torch.equal(logits(load(tmp_path / "again.safetensors"), x), logits(model, x))
