"""A small robust network and real images: measures order what is known to be ordered."""

import pytest
import torch
from shared_data import SharedData, robust_vit
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import to_tensor

from roli_fast.analysis import (
    Gathered,
    class_separation,
    feature_drift,
    gather,
    linear_cka,
    margin_sensitivity,
    residual_size,
    robust_drift,
)
from roli_fast.attacks import PGD
from roli_fast.data import Batch
from roli_fast.models import Classifier, Model, create, load_backbone

OPTIONS = dict(
    img_size=32, patch_size=4, embed_dim=128, depth=6, num_heads=4, class_token=False,
    global_pool="avg",
)  # fmt: skip
ATTACK = PGD(eps=4 / 255, step_size=2 / 255, steps=4)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def fresh() -> Classifier:
    config = Model("vit_tiny_patch16_224", options=OPTIONS, mean=MEAN, std=STD)
    return create(config, num_classes=100, image_size=32)


@pytest.fixture(scope="module")
def robust(fresh: Classifier) -> Classifier:
    made = create(fresh.config, num_classes=100, image_size=32)
    load_backbone(made, robust_vit(), with_head=True)
    return made


@pytest.fixture(scope="module")
def batches(shared_data: SharedData) -> list[Batch]:
    """Three validation images of each of 20 classes."""
    folder = ImageFolder(str(shared_data.imagenet100_32(per_class=3) / "val"))
    x = torch.stack([to_tensor(folder[index][0]) for index in range(60)])
    return [Batch(x, torch.tensor(folder.targets[:60]), torch.arange(60))]


@pytest.fixture(scope="module")
def clean(robust: Classifier, batches: list[Batch]) -> Gathered:
    return gather(robust, batches)


@pytest.fixture(scope="module")
def attacked(robust: Classifier, batches: list[Batch]) -> Gathered:
    return gather(robust, batches, ATTACK, keep_images=True)


def test_an_attack_moves_features_further_than_noise(
    robust: Classifier, batches: list[Batch], clean: Gathered, attacked: Gathered
) -> None:
    (batch,) = batches
    signs = torch.randint(2, batch.x.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    noisy = gather(robust, [batch._replace(x=(batch.x + ATTACK.eps * signs).clamp(0, 1))])
    by_attack = robust_drift(clean.features, attacked.features)
    by_noise = robust_drift(clean.features, noisy.features)
    assert by_attack.relative > 2 * by_noise.relative > 0
    drift = feature_drift(clean.features, attacked.features)
    assert drift.absolute == by_attack.absolute
    assert 0.5 < drift.cosine < 1 and 0.5 < drift.cka < 1
    assert attacked.x is not None
    assert (attacked.x - batch.x).abs().max().item() <= ATTACK.eps + 1e-7


def test_an_attack_leaves_more_to_learn(clean: Gathered, attacked: Gathered) -> None:
    before, after = (residual_size(part.logits, part.y) for part in (clean, attacked))
    assert (after > before).double().mean() > 0.9
    assert (after - before).mean() > 0.01


def test_trained_features_separate_classes(
    fresh: Classifier, batches: list[Batch], clean: Gathered, attacked: Gathered
) -> None:
    untrained = gather(fresh, batches)
    trained = class_separation(clean.features, clean.y)
    assert trained > class_separation(attacked.features, clean.y)
    assert trained > 1.2 * (20 - 1) / (60 - 20)  # what labels at random would give
    alike = linear_cka(clean.features, untrained.features, debiased=True)
    assert alike < linear_cka(clean.features, attacked.features, debiased=True)


def test_margins_fall_as_sensitivity_says(
    robust: Classifier, batches: list[Batch], attacked: Gathered
) -> None:
    """A robust network is close to linear in the ball: the first order predicts most of it."""
    before = margin_sensitivity(robust, batches, "linf")
    assert attacked.x is not None
    after = margin_sensitivity(robust, [batches[0]._replace(x=attacked.x)], "linf")
    fall = (before.margins - after.margins) / (ATTACK.eps * before.samples)
    assert 0.3 < fall.median() < 1.5
