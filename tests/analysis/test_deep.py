"""The first update and the kernel of a stage's start: what is compared with what."""

from typing import Any

import pytest
import torch
from tiny_models import images, tiny
from torch import nn

from roli_fast.analysis.deep import PARTS, Start, kernel_tree, one_step_tree
from roli_fast.analysis.ntk import check_memory, most_inputs
from roli_fast.attacks import PGD
from roli_fast.data import Batch
from roli_fast.errors import ArgumentError

ATTACK = PGD(eps=0.05, steps=2)


def batches(seed: int) -> list[Batch]:
    x, y = images(10, 3, 8, 8, seed=seed), torch.arange(10) % 5
    ids = torch.arange(10) + 100 * seed
    return [Batch(*parts) for parts in zip(x.split(6), y.split(6), ids.split(6), strict=True)]


def sgd(model: nn.Module, names: list[str]) -> torch.optim.Optimizer:
    own = dict(model.named_parameters())
    return torch.optim.SGD([own[name] for name in names], lr=1e-3)


def start(**changes: Any) -> Start:
    model = changes.pop("model", None) or tiny().double().eval()
    options: dict[str, Any] = {
        "model": model,
        "names": [name for name, _ in model.named_parameters()],
        "train": lambda: double(batches(1)),
        "validation": lambda: double(batches(2)),
        "attack": ATTACK,
        "lr": 0.01,
        "optimizer": "sgd",
        "optimize": sgd,
        "counts": (10, 10),
    }
    return Start(**(options | changes))


def double(given: list[Batch]) -> list[Batch]:
    return [batch._replace(x=batch.x.double()) for batch in given]


def test_plain_sgd_makes_the_step_that_is_predicted() -> None:
    """Its first update is the rate times the gradient of the mean, so both ways agree."""
    tree = one_step_tree(start(lr=1e-3, optimize=sgd))
    for kind in ("clean", "adversarial"):
        own = tree[kind]["first_update"]
        for name in ("ft_ratio", "predicted", "actual", "predicted_logits"):
            assert own[name] == pytest.approx(tree[kind][name], rel=1e-9), (kind, name)
        assert tree[kind]["relative_error"] < 0.05
        assert 0 < tree[kind]["ft_ratio"] < 2
        assert (tree[kind]["train_images"], tree[kind]["images"]) == (10, 10)
    assert tree["clean"]["predicted"] != tree["adversarial"]["predicted"]


@pytest.mark.parametrize("flag", list(PARTS))
def test_a_part_takes_what_is_told(flag: str) -> None:
    """Its progress image by image; and at least the forwards that are made, in forwards."""
    part, seen, passed = PARTS[flag], [], []
    own = start(after_batch=seen.append)
    if flag != "kernel":  # which looks at a copy
        own.model.register_forward_hook(lambda _model, given, _out: passed.append(len(given[0])))
    part.make(own)
    work = part.work(own)
    assert sum(seen) == work.images
    assert sum(passed) < work.forwards < 2.5 * sum(passed) or flag == "kernel"


def test_a_kernel_is_of_the_training_images_and_tested_on_others() -> None:
    tree = kernel_tree(start())
    assert (tree["images"], tree["test_images"], tree["classes"]) == (10, 10, 5)
    with torch.no_grad():
        model = tiny().double().eval()
        phi = torch.cat([model.features(batch.x.double()) for batch in batches(1)])
    gram = phi @ phi.t() + 1
    assert tree["P"]["rank"] == 5 * int(torch.linalg.matrix_rank(gram))
    assert tree["P"]["frobenius"] == pytest.approx(gram.norm().item() * 5**0.5)
    assert tree["spectrum"][0] == 1
    assert sorted(tree["spectrum"], reverse=True) == tree["spectrum"]
    assert tree["regression"]["trivial"] == 0.2


def test_a_kernel_above_its_memory_is_refused() -> None:
    with pytest.raises(ArgumentError, match="20 inputs x 5 classes"):
        kernel_tree(start(memory=10_000))
    fitting = most_inputs(102, 8, 2**31)
    check_memory(fitting, 102, 8, 2**31)
    with pytest.raises(ArgumentError, match="inputs x 102 classes"):
        check_memory(fitting + 1, 102, 8, 2**31)
