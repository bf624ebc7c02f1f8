"""Anybody's networks as classifiers: torchvision's, transformers', one's own."""

import copy
from types import SimpleNamespace

import pytest
import torch
import torchvision
from tiny_models import images, tiny
from torch import Tensor, nn

from roli_fast import peft
from roli_fast.attacks import PGD
from roli_fast.errors import ArgumentError, RoliFastError
from roli_fast.models import Model, create, hand_in, load, save_model, wrap
from roli_fast.models.classifier import find_head, head_name


class Own(nn.Module):
    """Two convolutions and a head with a name of its own; takes images of 8 x 8 alone."""

    def __init__(self, outputs: int = 4) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 5, 3, 2, 1))
        self.out = nn.Linear(20, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.body(x)).flatten(1))


class WithLogits(Own):
    """Returns an object, as networks of transformers do."""

    def forward(self, x: Tensor) -> Tensor:
        return SimpleNamespace(logits=super().forward(x))  # pyright: ignore


def two_linears() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 7), nn.ReLU(), nn.Linear(7, 3))


MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)


def test_images_are_normalised_and_the_module_is_the_backbone() -> None:
    own, x = Own().eval(), images(2, 3, 8, 8)
    model = wrap(own, mean=MEAN, std=STD)
    by_hand = (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    assert model.backbone is own
    torch.testing.assert_close(model(x), own(by_hand))
    torch.testing.assert_close(wrap(own)(x), own(x))  # which tells no normalisation of its own
    torch.testing.assert_close(model.head(model.features(x)), model(x))


TORCHVISION = torchvision.models


@pytest.mark.parametrize(
    ("build", "head"),
    [
        (lambda: TORCHVISION.resnet18(num_classes=4), "fc"),
        (lambda: TORCHVISION.mobilenet_v3_small(num_classes=4), "classifier.3"),
        (lambda: TORCHVISION.VisionTransformer(8, 4, 1, 2, 8, 8, num_classes=4), "heads.head"),
        (lambda: tiny().backbone, "head"),
        (WithLogits, "out"),
    ],
)
def test_the_head_is_found(build, head: str) -> None:
    network = build()
    assert head_name(network) == head
    model = wrap(network)
    assert find_head(model) == (f"backbone.{head}", network.get_submodule(head))
    assert "classes" not in model.card


def test_a_head_that_is_named_is_taken() -> None:
    model = wrap(two_linears(), head="3")
    assert model.head.out_features == 3 and model.features(images(2, 3, 8, 8)).shape == (2, 7)


def test_a_network_of_transformers_is_attacked_and_tuned() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"image_size": 8, "patch_size": 4, "hidden_size": 8, "intermediate_size": 16}
    counts = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_labels": 3}
    config = transformers.ViTConfig(**sizes, **counts)
    network = transformers.ViTForImageClassification(config).eval()
    x, y = images(2, 3, 8, 8), torch.tensor([0, 2])
    model = wrap(network, mean=(0.5,) * 3, std=(0.5,) * 3)
    torch.testing.assert_close(model(x), network((x - 0.5) / 0.5).logits)
    x_adv = PGD(eps=4 / 255, steps=2)(model, x, y)
    assert (x_adv - x).abs().max() <= 4 / 255 + 1e-7 and not torch.equal(x_adv, x)
    own = set(network.state_dict())
    trained = peft.apply(model, peft.LoRA(rank=2))
    assert "backbone.classifier.weight" in trained and len(trained) == 2 + 4 * 2
    merged = peft.merge(model)
    assert set(merged.backbone.state_dict()) == own


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (two_linears(), {}, r"one linear head.*Name it as `head`.*: 1 \(7\), 3 \(3\)"),
        (two_linears(), {"head": "2"}, r"with ReLU.*1 \(7\), 3 \(3\)"),
        (nn.Sequential(nn.Conv2d(3, 3, 8), nn.Flatten()), {}, r"one linear head.*: none"),
        (two_linears(), {"head": "4"}, "no layer '4'"),
        (torch.relu, {}, r"expected a torch\.nn\.Module"),
        (Own(), {"mean": MEAN}, "`mean and std`: expected both or none"),
    ],
)
def test_what_cannot_be_wrapped(module, options, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        wrap(module, **options)


def test_one_logit_is_that_of_the_second_of_two_classes() -> None:
    one, x = Own(outputs=1).eval(), images(3, 3, 8, 8)
    logits = wrap(one)(x)
    z = one(x)[:, 0]
    torch.testing.assert_close(logits.softmax(1)[:, 1], torch.sigmoid(z))
    assert logits.shape == (3, 2)


def test_a_network_that_is_handed_in_is_copied_and_gets_a_head_for_the_classes() -> None:
    own = Own()
    kept = copy.deepcopy(own.state_dict())
    config = hand_in(wrap(own, mean=MEAN, std=STD, head="out"))
    assert config.name.startswith("given:Own-") and config.mean == MEAN
    with torch.no_grad():
        own.body[0].weight.zero_()  # pyright: ignore
    model = create(config, num_classes=9, seed=1, image_size=8)
    assert model.head.out_features == 9 and isinstance(model.backbone, Own)
    first = model.backbone.get_parameter("body.0.weight")
    assert torch.equal(first, kept["body.0.weight"])  # as it was then
    again = create(config, num_classes=9, seed=1)
    assert torch.equal(model.head.weight, again.head.weight)  # by the seed alone
    whole = create(config, num_classes=4, with_head=True)
    assert torch.equal(whole.head.weight, kept["out.weight"])
    with pytest.raises(ArgumentError, match="a head of 4 for 9 classes"):
        create(config, num_classes=9, with_head=True)
    with pytest.raises(ArgumentError, match="a network of this process, got 'given:Own-0'"):
        create(Model("given:Own-0"), num_classes=3)


def test_a_saved_file_opens_around_any_network_of_the_class(tmp_path) -> None:
    model = create(hand_in(wrap(Own(), mean=MEAN, std=STD)), num_classes=3, seed=1)
    path = tmp_path / "own.safetensors"
    save_model(model, path, classes=("a", "b", "c"))
    opened = load(path, network=Own())
    x = images(2, 3, 8, 8)
    assert torch.equal(opened(x), model.eval()(x)) and opened.card["classes"] == ["a", "b", "c"]
    with pytest.raises(RoliFastError, match="another|expected|missing"):
        load(path, network=two_linears())


MODULE = """
import torch
from torch import nn
def network(width=3):
    return nn.Sequential(nn.Conv2d(3, width, 8), nn.Flatten(), nn.Linear(width, 2))
def broken():
    raise KeyError("nothing there")
"""


def test_a_function_that_is_named_makes_the_network(tmp_path, monkeypatch) -> None:
    (tmp_path / "my_networks.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    model = create(Model("my_networks:network", options={"width": 4}), num_classes=6)
    assert model(images(2, 3, 8, 8)).shape == (2, 6) and model.head.in_features == 4
    for name, message in {
        "broken": "raised KeyError",
        "nowhere": "no attribute 'nowhere'",
        "MODULE": "no attribute",
    }.items():
        with pytest.raises(RoliFastError, match=f"`model.name`.*{message}"):
            create(Model(f"my_networks:{name}"), num_classes=3)
    with pytest.raises(RoliFastError, match=r"it takes \(width=3\)"):
        create(Model("my_networks:network", options={"depth": 4}), num_classes=6)
