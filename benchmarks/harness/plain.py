"""Adversarial training as RoLI's release does it (its `adv_generator` and its trainer).

Written from its description, not from its text: each attack step calls backward(), which fills the
gradients of every trainable weight; the candidate of highest mean loss over the batch is kept; one
more forward, with a graph, lets the last one compete. fp32 throughout, LoRA unmerged.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from harness.timing import Call

EPS, STEP_SIZE = 8 / 255, 2 / 255


def attack(model: nn.Module, x: Tensor, y: Tensor, steps: int) -> Tensor:
    """The kept candidate of `steps` + 1."""
    training = model.training
    model.eval()
    current = (x + torch.empty_like(x).uniform_(-EPS, EPS)).clamp_(0, 1)
    best, highest = current, float("-inf")
    for _ in range(steps):
        current.requires_grad_(True)
        loss = cross_entropy(model(current), y)
        loss.backward()
        value = loss.item()
        if value > highest:
            best, highest = current.detach(), value
        assert current.grad is not None, "backward has just run"
        with torch.no_grad():
            moved = current + STEP_SIZE * current.grad.sign()
            current = torch.min(torch.max(moved, x - EPS), x + EPS).clamp(0, 1)
    loss = cross_entropy(model(current), y)
    if loss.item() > highest:
        best = current.detach()
    model.train(training)
    return best


def training(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    steps: int,
    mode: Callable[[], object] = lambda: None,
) -> Call:
    """One update of whatever requires grad by AdamW; `steps` 0 trains on clean images.

    Args:
        model: the network.
        x: images.
        y: labels.
        steps: of the attack.
        mode: puts the model into the mode of the update.
    """
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)

    def run() -> None:
        mode()
        x_adv = attack(model, x, y, steps) if steps else x
        loss = cross_entropy(model(x_adv), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()  # the release looks at it for NaN

    return run


class Low(nn.Module):
    """LoRA as two linear layers without bias beside a frozen one."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """The base's output and the update."""
        return self.base(x) + self.up(self.down(x))


def add_lora(model: nn.Module, layers: tuple[str, ...], rank: int) -> None:
    """Freeze all, then put a trainable `Low` in the place of every layer whose name ends so."""
    model.requires_grad_(False)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and name.endswith(layers):
            device = module.weight.device
            model.set_submodule(name, Low(module, rank).to(device))
