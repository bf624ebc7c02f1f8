"""Adversarial training as a LightningModule, with robust accuracy by torchmetrics."""

import lightning
import torch
import torchmetrics
from torch import nn
from torch.nn import functional

import roli_fast


class Robust(lightning.LightningModule):
    """`model` takes images in [0, 1]."""

    def __init__(self, model: nn.Module, classes: int, lr: float = 0.01) -> None:
        super().__init__()
        self.model, self.lr = model, lr
        self.attack = roli_fast.PGD(norm="linf", eps=4 / 255, steps=7)
        self.robust = torchmetrics.Accuracy("multiclass", num_classes=classes)

    def training_step(self, batch, _):
        x, y = batch
        return functional.cross_entropy(self.model(self.attack(self.model, x, y)), y)

    def validation_step(self, batch, _):
        x, y = batch
        self.robust(self.model(self.attack(self.model, x, y)), y)
        self.log("robust_accuracy", self.robust)

    def configure_optimizers(self):
        return torch.optim.SGD(self.model.parameters(), lr=self.lr, momentum=0.9)
