"""Adversarial training in a PyTorch loop of one's own: one line more."""

import torch
from torch import nn
from torch.nn import functional

import roli_fast


def train(model: nn.Module, loader, epochs: int = 1, lr: float = 0.01) -> nn.Module:
    """`model` takes images in [0, 1] (`roli_fast.models.wrap` normalises inside)."""
    attack = roli_fast.PGD(norm="linf", eps=4 / 255, steps=7)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    for _ in range(epochs):
        for x, y in loader:
            x_adv = attack(model, x, y)  # in eval mode, no weight gradients, the model as it was
            optimizer.zero_grad()
            functional.cross_entropy(model(x_adv), y).backward()
            optimizer.step()
    return model
