"""What every registered tuning method must do, on a network with LayerNorm and one with BN."""

from typing import Any

import pytest
import torch
from tiny_models import SIZES, images, tiny
from torch.nn.functional import cross_entropy

from roli_fast.models import Classifier
from roli_fast.peft import METHODS, Method, apply

Y = torch.tensor([0, 4, 2, 1, 3, 0])


@pytest.fixture(params=METHODS.names())
def method(request: pytest.FixtureRequest) -> Method:
    return METHODS[request.param]()


@pytest.fixture(params=["vit_tiny_patch16_224", "resnet18"])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def data(name: str) -> torch.Tensor:
    return images(len(Y), 3, SIZES[name], SIZES[name])


def logits(model: Classifier, x: torch.Tensor) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(x)


def train(model: Classifier, method: Method, x: torch.Tensor, steps: int = 2) -> None:
    """Some steps of SGD in the method's own mode."""
    chosen = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(chosen, lr=0.1)
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
    model = tiny(name)
    names = apply(model, method)
    trainable = [n for n, p in model.named_parameters() if p.requires_grad]
    assert sorted(names) == sorted(trainable) and len(set(names)) == len(names)
    head = {f"{model.head_name}.{part}" for part in ("weight", "bias")}
    assert head <= set(names)


def test_the_function_is_unchanged_at_first(method: Method, name: str) -> None:
    """Stage 2 starts from exactly the function that stage 1 ended with."""
    model, x = tiny(name), data(name)
    before = logits(model, x)
    apply(model, method)
    assert torch.equal(logits(model, x), before)


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


def test_frozen_parameters_get_no_gradient(method: Method, name: str) -> None:
    model = tiny(name)
    names = apply(model, method)
    train(model, method, data(name), steps=1)
    with_grad = [n for n, p in model.named_parameters() if p.grad is not None]
    assert sorted(with_grad) == sorted(names)


def test_a_state_dict_round_trip(method: Method, name: str) -> None:
    first, x = tiny(name), data(name)
    apply(first, method)
    train(first, method, x)
    again = tiny(name, seed=9)
    apply(again, method)
    again.load_state_dict(first.state_dict(), strict=True)
    assert torch.equal(logits(again, x), logits(first, x))


def test_applying_a_method_is_reproducible(method: Method, name: str) -> None:
    states = []
    for _ in range(2):
        model = tiny(name)
        apply(model, method)
        states.append(model.state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][n], states[1][n]) for n in states[0])


def test_the_method_is_its_configuration(method: Method) -> None:
    kind: Any = type(method)
    assert method == kind() and hash(method) == hash(kind())


def test_a_second_stage_can_follow_the_first(method: Method, name: str) -> None:
    """RoLI: a linear probe, then any other method, on the same model."""
    model = tiny(name)
    apply(model, METHODS["linear"]())
    names = apply(model, method)
    assert sorted(names) == sorted(n for n, p in model.named_parameters() if p.requires_grad)
