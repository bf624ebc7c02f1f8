"""RoLI's loop does what its description says, costs included."""

import pytest
import torch
from torch import Tensor, nn

from harness import plain, work
from harness.networks import SmallCNN


@pytest.fixture
def images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(4, 3, 32, 32, generator=generator), torch.arange(4)


def test_the_attack_costs_one_forward_more_and_fills_the_weights_gradients(images) -> None:
    torch.manual_seed(0)
    model, counted = SmallCNN().train(), work.Passes()
    with counted.of(model):
        x_adv = plain.attack(model, *images, steps=3)
    assert (counted.forwards, counted.backwards) == (4, 3)
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    assert model.training
    x, y = images
    assert (x_adv - x).abs().max() <= plain.EPS + 1e-6
    assert x_adv.min() >= 0 and x_adv.max() <= 1 and not x_adv.requires_grad
    loss = nn.functional.cross_entropy
    assert loss(model(x_adv), y) > loss(model(x), y)


def test_the_candidate_of_highest_mean_loss_is_kept(images) -> None:
    class Seen(nn.Module):
        """Its loss falls from the third candidate on, whatever the images."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))
            self.inputs: list[Tensor] = []

        def forward(self, x: Tensor) -> Tensor:
            self.inputs.append(x.detach().clone())
            wrong = [0.0, 1.0, 5.0, 2.0][len(self.inputs) - 1]
            logits = torch.zeros(len(x), 5)
            logits[:, 4] = wrong
            return logits + 0 * (x.mean() + self.weight)

    torch.manual_seed(0)
    model = Seen()
    x_adv = plain.attack(model, *images, steps=3)
    assert torch.equal(x_adv, model.inputs[2])


def test_an_update_wipes_what_the_attack_left(images, monkeypatch) -> None:
    torch.manual_seed(0)
    model, (x, y) = SmallCNN(), images
    loss = nn.functional.cross_entropy(model(x), y)
    expected = torch.autograd.grad(loss, list(model.parameters()))

    def attack(model: nn.Module, x: Tensor, y: Tensor, steps: int) -> Tensor:
        nn.functional.cross_entropy(model(x), y).backward()
        return x

    monkeypatch.setattr(plain, "attack", attack)
    plain.training(model, x, y, steps=1)()
    for parameter, grad in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, grad)


def test_lora_begins_as_the_layer_it_replaces_and_both_factors_get_gradients() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    x = torch.rand(4, 6)
    before = model(x)
    plain.add_lora(model, ("0",), rank=2)
    assert torch.equal(model(x), before)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained == ["0.down.weight", "0.up.weight"]
    model(x).sum().backward()
    assert model.get_parameter("0.up.weight").grad.any()
