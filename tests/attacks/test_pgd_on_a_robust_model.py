"""PGD on a small adversarially trained network and real images, against recorded accuracies."""

import os
from pathlib import Path

import pytest
import torch
from shared_data import REPOSITORY, SharedData
from torch import Tensor
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import to_tensor

from roli_fast.attacks import PGD
from roli_fast.models import Classifier, Model, create, load_backbone

ARCHIVES = Path(os.environ.get("ROLI_FAST_DATA") or REPOSITORY.parent / "shared" / "data")
WEIGHTS = ARCHIVES.parent / "weights" / "vit_micro_imagenet99_adv.safetensors"
OPTIONS = dict(
    img_size=32, patch_size=4, embed_dim=128, depth=6, num_heads=4, class_token=False,
    global_pool="avg",
)  # fmt: skip
CLEAN, ROBUST = 0.255, 0.105
"""Accuracy on the validation images and under PGD-10 at 4/255, as measured after training."""


@pytest.fixture(scope="module")
def model() -> Classifier:
    if not WEIGHTS.is_file():
        pytest.skip(f"no {WEIGHTS.name} in {WEIGHTS.parent}; set ROLI_FAST_DATA")
    config = Model(
        "vit_tiny_patch16_224",
        options=OPTIONS,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )
    made = create(config, num_classes=100, image_size=32)
    load_backbone(made, WEIGHTS, with_head=True)
    return made


@pytest.fixture(scope="module")
def batch(shared_data: SharedData) -> tuple[Tensor, Tensor]:
    """Three validation images of each of 99 classes."""
    folder = ImageFolder(str(shared_data.imagenet100_32(per_class=3) / "val"))
    x = torch.stack([to_tensor(image) for image, _ in folder])
    return x, torch.tensor(folder.targets)


def right(model: Classifier, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()(x).argmax(1) == y


def test_accuracies_are_those_recorded(model: Classifier, batch: tuple[Tensor, Tensor]) -> None:
    """Within four binomial standard errors; only images that are right need an attack."""
    x, y = batch
    clean = right(model, x, y)
    attack = PGD(eps=4 / 255, step_size=1 / 255, steps=10)
    x_adv = attack(model, x[clean], y[clean], torch.Generator().manual_seed(0))
    robust = right(model, x_adv, y[clean])
    for share, truth in ((clean.double().mean(), CLEAN), (robust.sum() / len(y), ROBUST)):
        assert abs(share.item() - truth) < 4 * (truth * (1 - truth) / len(y)) ** 0.5
    assert 0 < robust.sum() < clean.sum()
