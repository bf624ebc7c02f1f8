"""A pass that is split: the same gradients, one graph at a time, true costs, and clear errors."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from tiny_models import Counting, FixedLogits, Mixed, images, untouched
from torch import Tensor, nn

from roli_fast.engine import Cost, Engine, InputGradient, bound
from roli_fast.errors import ArgumentError, ArgumentTypeError
from roli_fast.losses import cross_entropy

X = images(7, 3, 6, 6).double()
Y = torch.tensor([0, 3, 1, 2, 2, 0, 1])
EXACT = dict(rtol=1e-12, atol=1e-15)


class Noting(nn.Module):
    """Notes the sizes of its batches, and how many graphs are alive when one is made."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.sizes: list[int] = []
        self.alive = self.most = 0

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        if x.requires_grad:
            self.alive += 1
            self.most = max(self.most, self.alive)
            x = x.clone()
            x.register_hook(self._gone)
        return self.inner(x)

    def _gone(self, _grad: Tensor) -> None:
        self.alive -= 1


@dataclass(frozen=True)
class Towards:
    """A loss with a number for every sample: it is wrong for any other part of the batch."""

    weight: Tensor

    def __call__(self, logits: Tensor, y: Tensor) -> Tensor:
        return self.weight * cross_entropy(logits, y)

    def rows(self, part: slice) -> "Towards":
        return replace(self, weight=self.weight[part])


def net() -> nn.Module:
    return Mixed().double()


@pytest.mark.parametrize("size", [1, 2, 3, 6, 7, 8])
@pytest.mark.parametrize("loss", [cross_entropy, Towards(torch.linspace(1, 4, 7).double())])
def test_the_same_gradient_loss_and_logits(size: int, loss: Any) -> None:
    with InputGradient(net(), loss) as engine:
        truth, looked = engine(X, Y), engine.evaluate(X, Y)
    model = Noting(net())
    with untouched(model), InputGradient(Engine(batch_size=size).bind(model)) as engine:
        found, seen = engine(X, Y, loss), engine.evaluate(X, Y, loss)
    for ours, theirs in zip((*found, *seen), (*truth, *looked), strict=True):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        assert torch.allclose(ours, theirs, **EXACT) and not ours.requires_grad
    full, rest = divmod(7, size)
    assert model.sizes == ([size] * full + [rest] * (rest > 0)) * 2
    assert model.most == 1
    calls = len(model.sizes) // 2
    assert engine.cost == Cost(2 * calls, calls)
    assert (engine.cost.forward_images, engine.cost.backward_images) == (14, 7)


def test_one_batch_is_kept_and_not_more() -> None:
    model = Counting(net())
    with InputGradient(Engine(batch_size=3).bind(model)) as engine:
        assert [(part.start, part.stop) for part in engine.batches(7)] == [(0, 3), (3, 6), (6, 7)]
        kept = engine.keep(X[:3], Y[:3])
        assert kept.gradient(cross_entropy)[0].shape == X[:3].shape
        with pytest.raises(ArgumentError, match="`x`: expected at most 3 images, got 7. Keep one"):
            engine.keep(X, Y)
    assert engine.cost == Cost(1, 1) == Cost(model.forwards, model.backwards)


def test_no_images_are_one_empty_batch() -> None:
    with InputGradient(Engine(batch_size=3).bind(net())) as engine:
        assert [(part.start, part.stop) for part in engine.batches(0)] == [(0, 0)]
        grad, loss, logits = engine(X[:0], Y[:0])
    assert grad.shape == (0, 3, 6, 6) and loss.shape == (0,) and logits.shape == (0, 4)


def test_it_is_a_model_itself() -> None:
    model = net().eval()
    whole, split = Engine().bind(model), Engine(batch_size=3).bind(model)
    leaf = X.clone().requires_grad_(True)
    (grad,) = torch.autograd.grad(split(leaf).sum(), leaf)
    (truth,) = torch.autograd.grad(model(leaf).sum(), leaf)
    assert torch.allclose(grad, truth, **EXACT)
    with torch.no_grad():
        assert torch.equal(whole(X), model(X))
        assert torch.allclose(split(X), model(X), **EXACT)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (torch.tensor([0, 0, 0, 0, 0, 0, 4]), r"labels in \[0, 4\)"),
        (Y[:6], r"`y`: expected shape \(7,\), got \(6,\)"),
        (torch.cat([Y, Y]), r"`y`: expected shape \(7,\), got \(14,\)"),
    ],
)
@pytest.mark.parametrize("call", ["__call__", "evaluate"])
def test_labels_of_all_batches_are_looked_at(y: Tensor, message: str, call: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        with InputGradient(Engine(batch_size=2).bind(net())) as engine:
            getattr(engine, call)(X, y)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("resnet18", {}, "`model`: expected a callable.*got str"),
        (Engine().bind(net()), {}, "`model`: expected a model without an engine"),
        (net(), {"batch_size": 0}, "`batch_size`: expected an integer >= 1 or None, got 0"),
        (net(), {"batch_size": 2.0}, "`batch_size`"),
        (net(), {"batch_size": True}, "`batch_size`"),
        (net(), {"dtype": torch.float64}, "`dtype`: expected torch.float32.*got torch.float64"),
        (net(), {"dtype": "bf16"}, "`dtype`.*got 'bf16'"),
    ],
)
def test_what_cannot_be_one(model: Any, options: Any, message: str) -> None:
    with pytest.raises((ArgumentError, ArgumentTypeError), match=message):
        Engine(**options).bind(model)


def test_a_loss_that_forgets_its_rows_is_noticed() -> None:
    weight = torch.ones(7).double()
    with pytest.raises((ArgumentError, RuntimeError)):
        with InputGradient(
            Engine(batch_size=2).bind(FixedLogits(torch.ones(4, 108).double()))
        ) as e:
            e(X, Y, lambda logits, y: weight * cross_entropy(logits, y))

