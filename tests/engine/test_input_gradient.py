"""The gradient engine: right gradients at true costs, also of a pass that is split or kept, and a
model given back exactly as it was."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from tiny_models import Counting, FixedLogits, Mixed, images, untouched
from torch import Tensor, nn

from roli_fast.engine import Cost, Engine, InputGradient
from roli_fast.errors import ArgumentError, ArgumentTypeError, RoliFastError
from roli_fast.losses import cross_entropy, margin
from roli_fast.threat import known_values

X = images(4, 3, 6, 6)
Y = torch.tensor([0, 3, 1, 2])


def plain_gradient(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same by ordinary autograd, on a model in eval mode."""
    leaf = x.clone().requires_grad_(True)
    logits = model(leaf)
    loss = nn.functional.cross_entropy(logits, y, reduction="none")
    loss.sum().backward()
    assert leaf.grad is not None
    return leaf.grad, loss.detach(), logits.detach()


class TestValues:
    def test_equals_plain_autograd(self) -> None:
        with InputGradient(Mixed()) as gradient:
            found, seen = gradient(X, Y), gradient.evaluate(X.clone().requires_grad_(True), Y)
        truth = plain_gradient(Mixed().eval(), X, Y)
        for ours, theirs in zip((*found, *seen), (*truth, *truth[1:]), strict=True):
            assert torch.equal(ours, theirs)
            assert not ours.requires_grad

    def test_by_hand(self) -> None:
        """Logits (2 x, 0), label 1: loss log(1 + e^2x), slope 2 sigmoid(2x) = 1 at x = 0."""
        model = FixedLogits(torch.tensor([[2.0], [0.0]]))
        with InputGradient(model) as gradient:
            grad, loss, logits = gradient(torch.zeros(2, 1), torch.tensor([1, 0]))
        assert grad.tolist() == [[1.0], [-1.0]]
        assert loss.tolist() == pytest.approx([0.6931472] * 2)
        assert logits.tolist() == [[0.0, 0.0]] * 2

    def test_input_that_has_a_history_gets_no_gradient(self) -> None:
        leaf = X.clone().requires_grad_(True)
        with InputGradient(Mixed()) as gradient:
            grad, _, _ = gradient(leaf * 1, Y)
            again, _, _ = gradient(leaf, Y)
        assert leaf.grad is None and torch.equal(grad, again)


class TestSurroundings:
    def test_inference_tensors_outside_inference_mode(self) -> None:
        with torch.inference_mode():
            x, y = X.clone(), Y.clone()
        with InputGradient(Mixed()) as gradient:
            assert torch.equal(gradient(x, y)[0], plain_gradient(Mixed().eval(), X, Y)[0])
            gradient.evaluate(x, y)

    def test_works_inside_an_outer_autocast(self) -> None:
        """A weight cast and cached by the training forward must not leak into the attack."""
        model = Mixed()
        with torch.autocast("cpu", torch.bfloat16):
            model(X)
            before = model.state_dict()["norm.running_mean"].clone()
            with untouched(model), InputGradient(model) as gradient:
                grad, loss, logits = gradient(X, Y)
            model(X).float().sum().backward()  # weights have a graph again after the attack
        assert torch.equal(model.norm.running_mean, before)  # pyright: ignore
        assert logits.dtype == torch.bfloat16
        assert grad.dtype == loss.dtype == torch.float32
        assert model.head.weight.grad is not None
        truth = plain_gradient(Mixed().eval(), X, Y)[0]
        cosine = nn.functional.cosine_similarity(
            grad.flatten(1), truth.flatten(1), dim=1
        )  # the running statistics moved once: close, not equal
        assert (cosine > 0.8).all()


def test_it_is_used_inside_with_again_and_not_nested() -> None:
    """The inner exit would forget, and the outer one find nothing to restore."""
    model = Mixed()
    gradient = InputGradient(model)
    for call in (gradient, gradient.evaluate, gradient.keep):
        with pytest.raises(RoliFastError, match="inside `with"):
            call(X, Y)
    for _ in range(2):
        with untouched(model), gradient:
            gradient(X, Y)
    assert gradient.cost == Cost(2, 2)
    with untouched(model), pytest.raises(RoliFastError, match="in use"), gradient, gradient:
        pytest.fail("entered twice")


def test_a_model_that_fails_on_entry_is_given_back() -> None:
    class Stubborn(nn.Identity):
        def train(self, mode: bool = True) -> "Stubborn":
            if not mode:
                raise RuntimeError("cannot be put into eval mode")
            return super().train(mode)

    model = nn.Sequential(Mixed(), Stubborn())
    with untouched(model), pytest.raises(RuntimeError, match="eval mode"), InputGradient(model):
        pytest.fail("entered")


class Recording(torch.autograd.Function):
    """x @ w.T that notes which gradients its backward is asked for."""

    asked: list[tuple[bool, ...]] = []

    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor) -> Tensor:  # pyright: ignore
        context.save_for_backward(x, weight)
        return x @ weight.t()

    @staticmethod
    def backward(context: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore
        Recording.asked.append(context.needs_input_grad)
        x, weight = context.saved_tensors
        return grad @ weight, grad.t() @ x


class TestCost:
    def test_the_weight_gradient_is_never_asked_for(self) -> None:
        class Net(FixedLogits):
            def forward(self, x: Tensor) -> Tensor:
                return Recording.apply(x.flatten(1), self.weight)  # pyright: ignore

        model = Net(torch.randn(4, 5))
        x, y = images(3, 5), Y[:3]
        Recording.asked.clear()
        nn.functional.cross_entropy(model(x.clone().requires_grad_()), y).backward()
        assert Recording.asked == [(True, True)]  # what plain backward asks for
        model.weight.grad = None
        Recording.asked.clear()
        with InputGradient(model) as gradient:
            gradient(x, y)
        assert Recording.asked == [(True, False)]
        assert model.weight.grad is None


class Returning(nn.Module):
    """A model that returns whatever a function makes of the logits."""

    def __init__(self, change: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.inner, self.change = Mixed(), change

    def forward(self, x: Tensor) -> Any:
        return self.change(self.inner(x))


class TestErrors:
    @pytest.mark.parametrize(
        ("change", "kind", "message"),
        [
            (lambda z: (z, z), ArgumentTypeError, "`model`.*logits tensor.*got tuple.*nn.Module"),
            (lambda z: z.detach(), ArgumentError, "`model`.*depend on x.*no_grad"),
            (
                lambda z: torch.zeros(4, 4, requires_grad=True) * 1,
                ArgumentError,
                "without a path to x",
            ),
            (lambda z: z[:3], ArgumentError, r"`model`: expected logits of .*got \(3, 4\)"),
        ],
    )
    def test_what_a_model_may_not_return(
        self, change: Callable[[Tensor], Any], kind: type[Exception], message: str
    ) -> None:
        model = Returning(change)
        with untouched(model), pytest.raises(kind, match=message), InputGradient(model) as gradient:
            gradient(X, Y)

    def test_images_or_labels_on_another_device_than_the_model(self) -> None:
        message = r"`x`: expected images on cpu, where the model is, got meta. .*x.to\('cpu'\)"
        model = Mixed()
        with untouched(model), InputGradient(model) as gradient:
            for call in (gradient, gradient.evaluate, gradient.keep):
                with pytest.raises(ArgumentError, match=message):
                    call(X.to("meta"), Y)
            with pytest.raises(ArgumentError, match="`y`: expected labels on cpu, got meta"):
                gradient(X, Y.to("meta"))

    def test_a_model_spread_over_devices_is_left_to_itself(self) -> None:
        model = Mixed()
        model.register_parameter("elsewhere", nn.Parameter(torch.zeros(1, device="meta")))
        with InputGradient(model) as gradient:
            gradient(X, Y)

    def test_a_loss_that_is_not_one_number_a_sample(self) -> None:
        with pytest.raises(ArgumentError, match=r"`loss`: expected one value a sample"):
            with InputGradient(Mixed(), nn.functional.cross_entropy) as gradient:
                gradient(X, Y)

    def test_labels_are_looked_at_once_or_not_where_they_are_known(self) -> None:
        """The check waits for the device, so an attack pays it once and not at every step; what
        costs no waiting is always checked."""
        clamped = lambda z, y: cross_entropy(z, y.clamp(max=3))  # noqa: E731
        with InputGradient(Mixed(), clamped) as gradient:
            gradient(X, Y)
            gradient(X, Y + 1)
        with InputGradient(Mixed(), clamped) as gradient, known_values():
            gradient(X, Y + 1)
        with InputGradient(Mixed()) as gradient, known_values():
            with pytest.raises(ArgumentError, match="shape"):
                gradient(X, Y[:3])


POOL = images(7, 3, 6, 6).double()
LABELS = torch.tensor([0, 3, 1, 2, 2, 0, 1])
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


@pytest.mark.parametrize("size", [1, 3, 8])
@pytest.mark.parametrize("loss", [cross_entropy, Towards(torch.linspace(1, 4, 7).double())])
def test_the_same_gradient_loss_and_logits(size: int, loss: Any) -> None:
    with InputGradient(net(), loss) as engine:
        truth, looked = engine(POOL, LABELS), engine.evaluate(POOL, LABELS)
    model = Noting(net())
    with untouched(model), InputGradient(Engine(batch_size=size).bind(model)) as engine:
        found, seen = engine(POOL, LABELS, loss), engine.evaluate(POOL, LABELS, loss)
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
        kept = engine.keep(POOL[:3], LABELS[:3])
        assert kept.gradient(cross_entropy)[0].shape == POOL[:3].shape
        with pytest.raises(ArgumentError, match="`x`: expected at most 3 images, got 7. Keep one"):
            engine.keep(POOL, LABELS)
    assert engine.cost == Cost(1, 1) == Cost(model.forwards, model.backwards)


def test_no_images_are_one_empty_batch() -> None:
    with InputGradient(Engine(batch_size=3).bind(net())) as engine:
        assert [(part.start, part.stop) for part in engine.batches(0)] == [(0, 0)]
        grad, loss, logits = engine(POOL[:0], LABELS[:0])
    assert grad.shape == (0, 3, 6, 6) and loss.shape == (0,) and logits.shape == (0, 4)


def test_it_is_a_model_itself() -> None:
    model = net().eval()
    whole, split = Engine().bind(model), Engine(batch_size=3).bind(model)
    leaf = POOL.clone().requires_grad_(True)
    (grad,) = torch.autograd.grad(split(leaf).sum(), leaf)
    (truth,) = torch.autograd.grad(model(leaf).sum(), leaf)
    assert torch.allclose(grad, truth, **EXACT)
    with torch.no_grad():
        assert torch.equal(whole(POOL), model(POOL))
        assert torch.allclose(split(POOL), model(POOL), **EXACT)


def test_labels_of_all_batches_are_looked_at() -> None:
    last, more = torch.tensor([0, 0, 0, 0, 0, 0, 4]), torch.cat([LABELS, LABELS])
    for y, message in ((last, r"labels in \[0, 4\)"), (more, r"shape \(7,\), got \(14,\)")):
        with pytest.raises(ArgumentError, match=message):
            with InputGradient(Engine(batch_size=2).bind(net())) as engine:
                engine(POOL, y)


def test_a_loss_that_forgets_its_rows_is_noticed() -> None:
    weight = torch.ones(7).double()
    with pytest.raises((ArgumentError, RuntimeError)):
        with InputGradient(
            Engine(batch_size=2).bind(FixedLogits(torch.ones(4, 108).double()))
        ) as e:
            e(POOL, LABELS, lambda logits, y: weight * cross_entropy(logits, y))


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


def test_a_kept_pass_gives_the_gradient_made_at_once_and_its_graph_goes() -> None:
    with InputGradient(Mixed(), margin) as engine:
        grad, values, logits = engine(X, Y)
        kept = engine.keep(X, Y)
        again, same = kept.gradient(margin)
        with pytest.raises(RuntimeError, match="second time"):
            kept.gradient(margin)
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
