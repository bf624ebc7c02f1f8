"""What every registered tuning method must do, on networks of every kind."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers.drop import DropPath
from tiny_models import METHOD_OPTIONS, SIZES, SMALL, images, tiny
from torch.nn.functional import cross_entropy

from roli_fast.engine import InputGradient
from roli_fast.errors import ArgumentError
from roli_fast.models import Classifier, Model, create, load, save_model
from roli_fast.peft import METHODS, Method, apply

Y = torch.tensor([0, 4, 2, 1])
EVERY: dict[str, tuple[int, dict[str, Any]]] = {
    **{name: (SIZES[name], options) for name, options in SMALL.items()},
    "swinv2_tiny_window8_256": (16, SMALL["swin_tiny_patch4_window7_224"]),
    "test_efficientnet": (32, {}),  # timm's own, of 0.4M parameters
    "mixer_s16_224": (32, {"img_size": 32, "mlp_ratio": (0.1, 0.1)}),
    "preact_resnet18": (32, {"widths": (8, 8), "depths": (1, 1), "stem_width": 8}),
}
"""timm architecture -> image size and options that make it tiny."""
TOKENS = r"`tuning`: .*prompt for {name}, which is timm's \w+\. .*VisionTransformer.*Swin.*use "
NO_MLP = r"`tuning`: .*adapter for {name} \(timm's \w+\), whose blocks have no `mlp`.*use bias or"
NO_LINEAR = (
    r"`targets`: expected .* of {name}, got 'q(?:kv)?'\. It has none but its head.*use bias or"
)
NO_QKV = r"`targets`: .* of {name}, got 'q'\. Its layers end in: fc1.*use targets such as 'fc1'"
NO_FUSED = r"`targets`: .* of {name}, got 'qkv'\. Its layers end in: fc1"
CONVOLUTIONS = ("preact_resnet18", "resnet18", "test_efficientnet")
OTHERS = ("convnext_atto", "mixer_s16_224")
REFUSED = {
    **{("prompt", name): TOKENS for name in (*CONVOLUTIONS, *OTHERS, "swinv2_tiny_window8_256")},
    **{("adapter", name): NO_MLP for name in (*CONVOLUTIONS, "mixer_s16_224")},
    **{(key, name): NO_LINEAR for key in ("lora", "lnlora") for name in CONVOLUTIONS},
    **{("lora", name): NO_QKV for name in OTHERS},
    **{("lnlora", name): NO_FUSED for name in OTHERS},
}
"""(method with its defaults, network) -> what the refusal says."""

NETWORKS = ("vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "resnet18")
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


def trainable(model: Classifier) -> list[str]:
    return [n for n, p in model.named_parameters() if p.requires_grad]


def shaken(name: str) -> Classifier:
    """The tiny network with no weight at zero, where some of timm's start and block gradients."""
    model = create(Model(name, options=EVERY[name][1]), num_classes=5)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
    return model


@pytest.mark.parametrize(
    ("key", "name"), [(key, name) for key in METHODS for name in EVERY], ids=lambda part: part
)
def test_it_trains_all_that_it_says_and_nothing_else_or_says_why_not(key: str, name: str) -> None:
    """A tensor that never gets a gradient is dead weight (the release's LoRA was). What is frozen
    stays bit for bit, as do the statistics of every BN that the method holds in eval mode."""
    model, method = shaken(name), METHODS[key](**METHOD_OPTIONS.get(key, {}))
    before = tensors(model)
    if (key, name) in REFUSED:
        with pytest.raises(ArgumentError, match=REFUSED[key, name].format(name=name)):
            apply(model, method)
        assert before.keys() == model.state_dict().keys()
        assert trainable(model) == [n for n, _ in model.named_parameters()]
        return
    names = apply(model, method)
    start = tensors(model)
    method.train_mode(model)
    live = {n for n, module in model.named_modules() if module.training}
    train(model, method, images(len(Y), 3, EVERY[name][0], EVERY[name][0]))
    after = tensors(model)
    assert [n for n in names if torch.equal(start[n], after[n])] == []
    moved = {n for n in after if not torch.equal(start[n], after[n])} - set(names)
    assert {n for n in moved if n.rpartition(".")[0] not in live} == set()
    assert moved <= {n for n, _ in model.named_buffers()}
    assert sorted(n for n, p in model.named_parameters() if p.grad is not None) == sorted(names)


def test_the_names_are_the_trainable_set(method: Method, name: str) -> None:
    """Also after a linear probe, RoLI's first stage, from exactly whose function stage 2 starts.
    timm's names keep their place in a state dict, so weights can be loaded before or after."""
    model, x = tiny(name), data(name)
    plain, before = tensors(model), logits(model, x)
    apply(model, METHODS["linear"]())
    names = apply(model, method)
    assert torch.equal(logits(model, x), before) == method.keeps_function
    assert sorted(names) == sorted(trainable(model)) and len(set(names)) == len(names)
    assert {f"{model.head_name}.{part}" for part in ("weight", "bias")} <= set(names)
    state = model.state_dict()
    assert all(torch.equal(state[n], tensor) for n, tensor in plain.items())
    assert state.keys() - plain.keys() <= set(names)
    if state.keys() == plain.keys():
        apply(model, method)
    else:
        with pytest.raises(ArgumentError, match="`tuning`"):  # what inserts, not twice
            apply(model, method)
    assert model.state_dict().keys() == state.keys()


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
    drawn = [n for n in states[0].keys() - plain if len(states[0][n].unique()) > 1]
    assert all(torch.equal(states[0][n], states[1][n]) for n in states[0])
    assert not any(torch.equal(states[0][n], states[2][n]) for n in drawn)


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


def test_bf16_autocast_is_near_fp32(method: Method, name: str) -> None:
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


def test_what_was_trained_is_attacked_copied_and_saved(
    method: Method, name: str, tmp_path: Path
) -> None:
    """Whatever is random in updates is off in the attack, and comes back afterwards. Hooks and
    classes go with a deep copy and point at the copy; what is inserted takes the modes around it,
    and a file of the model has all of it."""
    model, x = tiny(name).train(), data(name)
    apply(model, method, seed=3)
    assert {m.training for m in model.modules()} == {True}
    train(model, method, x)
    expected, chosen = logits(model, x), trainable(model)
    save_model(model, tmp_path / "model.safetensors", classes=tuple("abcde"))
    again = load(tmp_path / "model.safetensors")
    assert torch.equal(logits(again, x), expected) and again.card["classes"] == list("abcde")
    method.train_mode(model)
    modes = [m.training for m in model.modules()]
    with InputGradient(model) as gradient:
        _, _, first = gradient(x, Y)
        _, second = gradient.evaluate(x, Y)
    torch.testing.assert_close(first, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(second, expected, rtol=1e-5, atol=1e-6)
    assert modes == [m.training for m in model.modules()] and chosen == trainable(model)
    copied = copy.deepcopy(model)
    train(copied, method, x)
    assert torch.equal(logits(model, x), expected)
    assert not torch.equal(logits(copied, x), expected)


@pytest.mark.parametrize("name", ["convnext_atto", "mixer_s16_224"])
def test_lora_takes_the_layers_that_its_refusal_names(name: str) -> None:
    model = shaken(name)
    names = apply(model, METHODS["lora"](rank=2, targets=("fc1",)))
    assert any(n.endswith("fc1.lora_a") for n in names)
