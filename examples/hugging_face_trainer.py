"""Adversarial fine-tuning by the Trainer of transformers."""

import torch
from transformers import Trainer

import roli_fast


class RobustTrainer(Trainer):
    """Images in [0, 1] of a processor with do_normalize=False, or bounds and eps to match."""

    attack = roli_fast.PGD(norm="linf", eps=4 / 255, steps=7)

    def compute_loss(self, model, inputs, *args, **options):
        if model.training:
            x, y = inputs["pixel_values"], inputs["labels"]
            inputs = inputs | {"pixel_values": self.attack(model, x, y)}
        return super().compute_loss(model, inputs, *args, **options)


def collate(samples) -> dict[str, torch.Tensor]:
    """(image, label) samples as the Trainer wants a batch."""
    x, y = zip(*samples, strict=True)
    return {"pixel_values": torch.stack(x), "labels": torch.tensor(y)}
