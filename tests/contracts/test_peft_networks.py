"""Every tuning method on networks of every kind: it trains all that it says, or says why not."""

from typing import Any

import pytest
import torch
from tiny_models import METHOD_OPTIONS, SIZES, SMALL, images
from torch.nn.functional import cross_entropy

from roli_fast.errors import ArgumentError
from roli_fast.models import Classifier, Model, create
from roli_fast.peft import METHODS, apply

Y = torch.tensor([0, 4, 2, 1])
NETWORKS: dict[str, tuple[int, dict[str, Any]]] = {
    **{name: (SIZES[name], options) for name, options in SMALL.items()},
    "swinv2_tiny_window8_256": (16, SMALL["swin_tiny_patch4_window7_224"]),
    "test_efficientnet": (32, {}),  # timm's own, of 0.4M parameters
    "mixer_s16_224": (32, {"img_size": 32, "mlp_ratio": (0.1, 0.1)}),
    "preact_resnet18": (32, {"widths": (8, 8), "depths": (1, 1), "stem_width": 8}),
}
"""timm architecture -> image size and options that make it tiny."""
TOKENS = (
    r"`tuning`: .*prompt for {name}, which is timm's \w+\. .*VisionTransformer.*SwinTrans.*use "
)
NO_MLP = (
    r"`tuning`: .*adapter for {name} \(timm's \w+\), whose blocks have no `mlp`.*use bias or full"
)
NO_LINEAR = (
    r"`targets`: expected .* of {name}, got 'q'\. It has none but its head.*use bias or full"
)
NO_QKV = (
    r"`targets`: expected .* of {name}, got 'q'\. Its layers end in: fc1.*use targets such as 'fc1'"
)
REFUSED = {
    ("prompt", "convnext_atto"): TOKENS,
    ("prompt", "mixer_s16_224"): TOKENS,
    ("prompt", "preact_resnet18"): TOKENS,
    ("prompt", "resnet18"): TOKENS,
    ("prompt", "swinv2_tiny_window8_256"): TOKENS,
    ("prompt", "test_efficientnet"): TOKENS,
    ("adapter", "mixer_s16_224"): NO_MLP,
    ("adapter", "preact_resnet18"): NO_MLP,
    ("adapter", "resnet18"): NO_MLP,
    ("adapter", "test_efficientnet"): NO_MLP,
    ("lora", "convnext_atto"): NO_QKV,
    ("lora", "mixer_s16_224"): NO_QKV,
    ("lora", "preact_resnet18"): NO_LINEAR,
    ("lora", "resnet18"): NO_LINEAR,
    ("lora", "test_efficientnet"): NO_LINEAR,
}
"""(method with its defaults, network) -> what the refusal says."""

PAIRS = [(method, name) for method in METHODS for name in NETWORKS]


def shaken(name: str) -> Classifier:
    """The tiny network with no weight at zero, where some of timm's start and block gradients."""
    model = create(Model(name, options=NETWORKS[name][1]), num_classes=5)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
    return model


@pytest.mark.parametrize(("method", "name"), PAIRS, ids=lambda part: part)
def test_it_trains_or_says_why_not(method: str, name: str) -> None:
    model, chosen = shaken(name), METHODS[method](**METHOD_OPTIONS.get(method, {}))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    if (method, name) in REFUSED:
        with pytest.raises(ArgumentError, match=REFUSED[method, name].format(name=name)):
            apply(model, chosen)
        assert before.keys() == model.state_dict().keys()
        return
    names = apply(model, chosen)
    chosen.train_mode(model)
    start = {n: model.get_parameter(n).detach().clone() for n in names}
    optimizer = torch.optim.Adam([model.get_parameter(n) for n in names], lr=1e-3)
    x = images(len(Y), 3, NETWORKS[name][0], NETWORKS[name][0])
    for _ in range(2):
        optimizer.zero_grad()
        cross_entropy(model(x), Y).backward()
        optimizer.step()
    assert [n for n in names if torch.equal(start[n], model.get_parameter(n))] == []


@pytest.mark.parametrize("name", ["convnext_atto", "mixer_s16_224"])
def test_lora_takes_the_layers_that_its_refusal_names(name: str) -> None:
    model = shaken(name)
    names = apply(model, METHODS["lora"](rank=2, targets=("fc1",)))
    assert any(n.endswith("fc1.lora_a") for n in names)
