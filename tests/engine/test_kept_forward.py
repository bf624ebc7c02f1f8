"""Several gradients from one forward, and a gradient that is asked for later."""

import pytest
import torch
from tiny_models import Counting, FixedLogits, Mixed, images, untouched
from torch import Tensor

from roli_fast.engine import Cost, InputGradient
from roli_fast.errors import ArgumentError, RoliFastError
from roli_fast.losses import cross_entropy, margin

X = images(4, 3, 6, 6)
Y = torch.tensor([0, 3, 1, 2])


def logit(number: int):
    return lambda logits, y: logits[:, number]


def test_a_linear_model_by_hand() -> None:
    model = FixedLogits(torch.tensor([[2.0, 1.0], [5.0, -3.0]]))
    with InputGradient(model) as engine:
        kept = engine.keep(torch.ones(2, 2), torch.tensor([0, 1]))
        assert kept.logits.tolist() == [[3.0, 2.0]] * 2 and not kept.logits.requires_grad
        first, value = kept.gradient(logit(0), last=False)
        second, _ = kept.gradient(logit(1))
    assert first.tolist() == [[2.0, 1.0]] * 2 and value.tolist() == [3.0, 3.0]
    assert second.tolist() == [[5.0, -3.0]] * 2


@pytest.mark.parametrize("loss", [cross_entropy, margin])
def test_it_equals_the_gradient_made_at_once(loss) -> None:
    with InputGradient(Mixed(), loss) as engine:
        grad, values, logits = engine(X, Y)
        kept = engine.keep(X, Y)
        again, same = kept.gradient(loss)
    assert torch.equal(again, grad) and torch.equal(same, values)
    assert torch.equal(kept.logits, logits)


def test_passes_are_counted_and_the_model_is_given_back() -> None:
    model = Counting(Mixed())
    with untouched(model), InputGradient(model) as engine:
        kept = engine.keep(X, Y)
        assert engine.cost == Cost(1, 0)
        for number in range(3):
            kept.gradient(logit(number), last=number == 2)
    assert engine.cost == Cost(1, 3) == Cost(model.forwards, model.backwards)
    assert (engine.cost.forward_images, engine.cost.backward_images) == (4, 12)


def test_after_the_last_gradient_the_graph_is_gone() -> None:
    with InputGradient(Mixed()) as engine:
        kept = engine.keep(X, Y)
        kept.gradient(cross_entropy)
        with pytest.raises(RuntimeError, match="second time"):
            kept.gradient(cross_entropy)


def test_errors() -> None:
    def ignoring(x: Tensor) -> Tensor:
        return torch.zeros(len(x), 4, requires_grad=True) * 1

    with (
        pytest.raises(ArgumentError, match="without a path to x"),
        InputGradient(ignoring) as engine,
    ):
        engine.keep(X, Y).gradient(cross_entropy)
    with pytest.raises(ArgumentError, match="`y`"), InputGradient(Mixed()) as engine:
        engine.keep(X, Y + 9)
    with pytest.raises(RoliFastError, match="inside `with"):
        InputGradient(Mixed()).keep(X, Y)
