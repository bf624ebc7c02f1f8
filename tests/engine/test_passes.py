"""Passes in bf16: fp32 outside, right inside, the model's weights untouched, LoRA merged."""

from typing import Any

import pytest
import torch
from test_merging import Low, network
from tiny_models import SIZES, FixedLogits, Mixed, images, tiny, untouched
from torch import Tensor, nn
from torch.nn import functional

from roli_fast.engine import Engine, InputGradient
from roli_fast.errors import ArgumentTypeError

X = images(4, 3, 6, 6)
Y = torch.tensor([0, 3, 1, 2])
SHORT = [torch.bfloat16, torch.float16]


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return functional.cosine_similarity(a.flatten(1), b.flatten(1), dim=1)


@pytest.mark.parametrize("dtype", SHORT, ids=str)
@pytest.mark.parametrize("name", SIZES)
def test_close_to_fp32_and_fp32_outside(name: str, dtype: torch.dtype) -> None:
    model, side = tiny(name), SIZES[name]
    x, y = images(4, 3, side, side), torch.tensor([0, 3, 1, 4])
    with InputGradient(model) as engine:
        truth = engine(x, y)
    with untouched(model), InputGradient(Engine(batch_size=3, dtype=dtype).bind(model)) as engine:
        found, seen = engine(x, y), engine.evaluate(x, y)
        assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert {tensor.dtype for tensor in (*found, *seen)} == {torch.float32}
    assert (cosine(found[0], truth[0]) > 0.97).all()
    # the last digit of bf16 is worth 2^-8 of a number; a few layers add a few of them
    assert torch.allclose(found[2], truth[2], rtol=0, atol=0.04 * truth[2].abs().max().item())
    assert not torch.equal(found[2], truth[2])
    assert torch.allclose(seen[1], found[2], rtol=0, atol=0.04 * truth[2].abs().max().item())


class Looking(nn.Module):
    """Notes what its layers compute with."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.head = nn.Linear(64, 4)
        self.twin = self.head  # tied
        self.seen: dict[str, Any] = {}

    def forward(self, x: Tensor) -> Tensor:
        maps = self.norm(self.conv(x))
        self.seen = {
            "x": x.dtype,
            "conv": self.conv.weight.dtype,
            "rows": self.conv.weight.is_contiguous(memory_format=torch.channels_last),
            "norm": self.norm.weight.dtype,
            "maps": maps.dtype,
            "head": self.head.weight.dtype,
            "tied": self.twin.weight is self.head.weight,
            "pointer": self.head.weight.data_ptr(),
        }
        return self.twin(maps.flatten(1))


def test_what_a_forward_computes_with() -> None:
    model, short = Looking(), torch.bfloat16
    with untouched(model), InputGradient(Engine(dtype=short).bind(model)) as engine:
        engine(X, Y)
        first = dict(model.seen)
        engine.evaluate(X, Y)
    assert first == {
        "x": torch.float32,
        "conv": short,
        "rows": True,
        "norm": torch.float32,
        "maps": short,
        "head": short,
        "tied": True,
        "pointer": model.seen["pointer"],  # converted once, not at each call
    }


def test_a_model_that_gets_no_better_by_hand() -> None:
    """1 + 2^-9 is no bf16 number: the weight is rounded to 1, exactly once, and logits are not."""
    model = FixedLogits(torch.tensor([[1 + 2**-9], [0.0]]))
    with InputGradient(Engine(dtype=torch.bfloat16).bind(model)) as engine:
        grad, _loss, logits = engine(torch.ones(1, 1), torch.tensor([1]), lambda z, y: z[:, 0])
    assert logits.tolist() == [[1.0, 0.0]] and grad.tolist() == [[1.0]]


def test_a_small_gradient_does_not_vanish_in_fp16() -> None:
    """Logits (0, -20), label 0: the loss falls with the second by e^-20 = 2e-9, and fp16 ends at
    6e-8."""
    model = FixedLogits(torch.tensor([[0.0], [-20.0]]))
    x, y = torch.ones(1, 1), torch.tensor([0])
    with InputGradient(Engine(dtype=torch.float16).bind(model)) as engine:
        grad = engine(x, y)[0]
        again = engine.keep(x, y).gradient(functional_loss)[0]
    assert grad.item() == again.item() == pytest.approx(-20 * 2.0612e-9, rel=0.1)


def functional_loss(logits: Tensor, y: Tensor) -> Tensor:
    return functional.cross_entropy(logits, y, reduction="none")


def test_low_rank_layers_are_merged_in_the_short_dtype() -> None:
    model, x = network(), images(4, 12)
    with untouched(model), InputGradient(Engine(dtype=torch.bfloat16).bind(model)) as engine:
        engine(x, Y)
    assert isinstance(model[0], Low) and model[0].ways == ["torch.bfloat16"]
    with InputGradient(model) as engine:
        engine(x, Y)
    assert model[0].ways[1:] == ["torch.float32"]


def test_a_callable_is_served_by_autocast() -> None:
    weight = images(4, 108)
    model = Engine(dtype=torch.bfloat16).bind(lambda x: x.flatten(1) @ weight.t())
    with InputGradient(model) as engine:
        grad, _loss, logits = engine(X, Y)
    truth = X.flatten(1) @ weight.t()
    assert grad.dtype == logits.dtype == torch.float32
    assert torch.allclose(logits, truth, rtol=0.02) and not torch.equal(logits, truth)


def test_a_weight_that_changes_between_searches_is_read_again() -> None:
    linear = FixedLogits(torch.ones(2, 1))
    model = Engine(dtype=torch.bfloat16).bind(linear)
    for value in (1.0, 3.0):
        with torch.no_grad():
            linear.weight.fill_(value)
        with InputGradient(model) as engine:
            assert engine.evaluate(torch.ones(1, 1), Y[:1])[1].tolist() == [[value, value]]


class Caching(nn.Module):
    """Keeps in eval mode what it derives from its parameter, as LeViT does its attention's bias."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.table = nn.Linear(108, 4), nn.Parameter(images(8) / 3)
        self.cache: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.cache is None:
            self.cache = self.table[[1, 3, 5, 7]]
        return self.head(x.flatten(1)) + self.cache


def test_what_a_model_keeps_of_its_parameters_stays_fp32() -> None:
    model = Caching().eval()
    truth = model(X)
    model.cache = None  # made anew by a short pass
    with untouched(model), InputGradient(Engine(dtype=torch.bfloat16).bind(model)) as engine:
        engine.evaluate(X, Y)
    assert model.cache is not None and torch.equal(model(X), truth)


def test_attention_that_holds_its_weights_itself() -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    seen = []

    def forward(x: Tensor) -> Tensor:
        seen.append(attention.in_proj_weight.dtype)
        return attention(x, x, x, need_weights=False)[0].mean(1)

    model = nn.Module()
    model.attention, model.forward = attention, forward
    x = images(4, 5, 8)
    with InputGradient(model) as engine:
        truth = engine(x, Y)
    with untouched(model), InputGradient(Engine(dtype=torch.bfloat16).bind(model)) as engine:
        found = engine(x, Y)
    assert seen == [torch.float32, torch.bfloat16]
    assert (cosine(found[0], truth[0]) > 0.97).all()


COMPUTED = {
    "spectral_norm": nn.utils.spectral_norm,
    "weight_norm": nn.utils.weight_norm,
    "spectral_parametrization": nn.utils.parametrizations.spectral_norm,
}


@pytest.mark.parametrize("dtype", SHORT, ids=str)
@pytest.mark.parametrize("name", COMPUTED)
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_a_weight_computed_from_another(name: str, dtype: torch.dtype) -> None:
    norm: Any = COMPUTED[name]
    torch.manual_seed(0)
    model = nn.Sequential(norm(nn.Conv2d(3, 4, 3)), nn.Flatten(), norm(nn.Linear(64, 4)))
    model(X)  # in train mode: a step towards the largest singular value
    model.eval()
    truth = model(X).detach()
    with InputGradient(Engine(dtype=dtype).bind(model)) as engine:
        logits = engine(X, Y)[2]
    # two layers of bf16, whose last digit is worth 2^-8
    assert torch.allclose(logits, truth, rtol=0, atol=0.04 * truth.abs().max().item())
    assert torch.equal(model(X), truth)


class Viewing(nn.Module):
    """Its view asks for maps that lie channel by channel; `when` there are that many images."""

    def __init__(self, when: int = 0) -> None:
        super().__init__()
        self.conv, self.head, self.when = nn.Conv2d(3, 4, 3), nn.Linear(64, 4), when
        self.rows: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        rows = self.conv.weight.is_contiguous(memory_format=torch.channels_last)
        self.rows.append(rows)
        maps = self.conv(x)
        return self.head(maps.view(len(x), -1) if len(x) >= self.when else maps.flatten(1))


class Pixels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(108, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.view(len(x), -1))


class TestViews:
    @pytest.mark.parametrize("dtype", SHORT, ids=str)
    @pytest.mark.parametrize("make", [Viewing, Pixels])
    def test_as_in_fp32(self, make: type[nn.Module], dtype: torch.dtype) -> None:
        model = make()
        with InputGradient(model) as engine:
            truth = engine(X, Y)
        with torch.inference_mode(), InputGradient(Engine(dtype=dtype).bind(model)) as engine:
            logits = engine.evaluate(X, Y)[1]
            after = engine(X, Y)[0]
        with InputGradient(Engine(dtype=dtype).bind(model)) as engine:
            found = engine(X, Y)
        assert torch.allclose(logits, truth[2], atol=0.03)
        assert torch.allclose(found[2], truth[2], atol=0.03)
        assert (cosine(found[0], truth[0]) > 0.99).all() and torch.equal(after, found[0])

    def test_tried_once(self) -> None:
        model = Viewing()
        with InputGradient(Engine(dtype=torch.bfloat16).bind(model)) as engine:
            engine(X, Y)
            engine.evaluate(X, Y)
        assert model.rows == [True, False, False]
        assert all(p.dtype == torch.float32 for p in model.parameters())

    def test_a_graph_from_before(self) -> None:
        model = Viewing(when=3)
        with InputGradient(Engine(dtype=torch.bfloat16).bind(model)) as engine:
            alone = engine(X[:2], Y[:2])[0]
            kept = engine.keep(X[:2], Y[:2])
            engine(X, Y)
            assert model.rows == [True, True, True, False]
            assert torch.equal(kept.gradient(functional_loss)[0], alone)

    def test_a_view_that_fp32_does_not_have_either(self) -> None:
        model = Engine(dtype=torch.bfloat16).bind(lambda x: x.transpose(1, 2).view(len(x), -1))
        with InputGradient(model) as engine, pytest.raises(RuntimeError, match="view size is not"):
            engine(X, Y)


def test_what_cannot_be_searched_in_it() -> None:
    with pytest.raises(ArgumentTypeError, match="`x`: expected fp32 images, got torch.float64"):
        with InputGradient(Engine(dtype=torch.bfloat16).bind(Mixed())) as engine:
            engine(X.double(), Y)
    with pytest.deprecated_call():
        scripted = torch.jit.trace(Looking().eval(), X, check_trace=False)
    with pytest.raises(ArgumentTypeError, match="`model`: expected a plain nn.Module"):
        Engine(dtype=torch.bfloat16).bind(scripted)  # pyright: ignore


class Layout(nn.Module):
    """Notes how its weights and maps lie, and asks for a view where it is told to."""

    def __init__(self, view: bool = False) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8 * 16, 4)
        self.view, self.seen = view, []

    def forward(self, x: Tensor) -> Tensor:
        maps = self.conv(x)
        rows = torch.channels_last
        self.seen.append(
            tuple(t.is_contiguous(memory_format=rows) for t in (x, self.conv.weight, maps))
        )
        if self.view:
            return self.head(maps.view(len(x), -1))
        return self.head(maps.flatten(1))


class TestChannelsLast:
    X, Y = images(2, 3, 6, 6), torch.tensor([0, 1])

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("asked", ["auto", True, False])
    def test_it_is_as_asked_and_nothing_is_left(self, dtype: torch.dtype, asked: Any) -> None:
        model = Layout()
        with InputGradient(model) as engine:
            truth = engine(self.X, self.Y)[0]
        model.seen.clear()
        bound = Engine(dtype=dtype, channels_last=asked).bind(model)
        with untouched(model), InputGradient(bound) as engine:
            grad = engine(self.X, self.Y)[0]
        expected = dtype != torch.float32 if asked == "auto" else asked
        assert model.seen == [(expected, expected, expected)]
        assert model.conv.weight.is_contiguous()
        if dtype == torch.float32:
            assert torch.allclose(grad, truth, rtol=1e-4, atol=1e-6)
        else:
            assert (cosine(grad, truth) > 0.99).all()

    def test_fp64_models_too(self) -> None:
        model = Layout().double()
        with InputGradient(model) as engine:
            truth = engine(self.X.double(), self.Y)[0]
        with InputGradient(Engine(channels_last=True).bind(model)) as engine:
            assert torch.allclose(engine(self.X.double(), self.Y)[0], truth, rtol=1e-12, atol=1e-15)
        assert model.seen[-1] == (True, True, True)

@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize(
    "engine",
    [
        Engine(dtype=torch.bfloat16),
        Engine(dtype=torch.float16, attention="products"),
        Engine(channels_last=True, attention="products"),
    ],
    ids=str,
)
def test_on_a_gpu(name: str, engine: Engine) -> None:
    model, side = tiny(name).cuda(), SIZES[name]
    x, y = images(4, 3, side, side).cuda(), torch.tensor([0, 3, 1, 4]).cuda()
    with InputGradient(model) as gradient:
        truth = gradient(x, y)
    with untouched(model), InputGradient(engine.bind(model)) as gradient:
        found = gradient(x, y)
    assert (cosine(found[0], truth[0]) > 0.97).all()
    assert {tensor.dtype for tensor in found} == {torch.float32}
