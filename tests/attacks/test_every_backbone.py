"""AutoAttack with few classes, and answers that the batch size does not change, for every form of
network that is taken: what other libraries warn of, or fail at."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_models import images, tiny
from torch import Tensor, nn
from torchvision.models import ShuffleNetV2

from roli_fast.attacks import AutoAttack
from roli_fast.evaluate import evaluate
from roli_fast.models import Classifier, wrap


class Own(nn.Module):
    """A network of the user's."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 6, 3, 2, 1)
        self.out = nn.Linear(6, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.body(x)).mean((2, 3)))


def transformers_vit(classes: int) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    sizes: Any = dict(image_size=8, patch_size=4, hidden_size=8, intermediate_size=16)
    config = transformers.ViTConfig(
        num_hidden_layers=1, num_attention_heads=2, num_labels=classes, **sizes
    )
    return transformers.ViTForImageClassification(config)


FORMS: dict[str, tuple[int, Callable[[int], Classifier]]] = {
    "timm's CNN": (32, lambda classes: tiny("resnet18", num_classes=classes)),
    "timm's ViT": (8, lambda classes: tiny(num_classes=classes)),
    "torchvision's": (
        32,
        lambda classes: wrap(ShuffleNetV2([1, 1, 1], [8, 8, 8, 16, 16], num_classes=classes)),
    ),
    "transformers'": (8, lambda classes: wrap(transformers_vit(classes))),
    "one's own": (8, lambda classes: wrap(Own(classes))),
}
"""Form -> image size, and a network with so many classes."""


def sharp(model: Classifier) -> Classifier:
    """With logits so far apart that the images are answered differently and can be fooled."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        model.head.weight.copy_(5 * torch.randn(model.head.weight.shape, generator=draw))
    return model.eval()


@pytest.mark.parametrize(("form", "classes"), [*((form, 3) for form in FORMS), ("one's own", 2)])
def test_fewer_classes_than_ten_and_any_batch_size(form: str, classes: int) -> None:
    size, build = FORMS[form]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = sharp(build(classes))
    colours = images(5, 3, 1, 1)
    x = (0.7 * colours + 0.3 * images(5, 3, size, size, seed=1)).clamp(0, 1)
    y = model(x).argmax(1)
    attack = AutoAttack(eps=6 / 255, steps=3, n_queries=8)
    whole, pairs = (
        evaluate(model, zip(x.split(batch), y.split(batch), strict=True), [attack], seed=3)
        for batch in (5, 2)
    )
    assert whole.clean.all() and torch.equal(pairs.union, whole.union)
    result = attack.run(model, x, y, torch.Generator().manual_seed(0))
    assert any(f"{classes} classes" in note for note in result.notes)
    assert (result.x_adv - x).abs().max() <= 6 / 255 + 1e-6
    assert result.x_adv.min() >= 0 and result.x_adv.max() <= 1
