"""Attention by products and by torch's kernel: the same numbers, and who chooses between them."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tiny_models import Fused, images, tiny
from torch import Tensor
from torch.nn import functional

from roli_fast import ops
from roli_fast.engine import Engine, InputGradient, attention
from roli_fast.engine.attention import ChosenAttention, attention_by, products_are_quicker

Y = torch.tensor([0, 1])


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def case(batch: int = 3, *, graph: bool = True, dtype: torch.dtype = torch.bfloat16) -> Any:
    query, key, value = drawn(3, batch, 2, 5, 8).to(dtype)
    return query.requires_grad_(graph), key, value, None, None


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_chosen", {})


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Measurements in place of the real ones: products with a gradient, torch's without."""
    found: list[Any] = []

    def measure(tensors: list[Tensor], scale: float | None, graph: bool) -> bool:
        found.append((tuple(tensors[0].shape), tensors[0].dtype, graph))
        return graph

    monkeypatch.setattr(attention, "_measure", measure)
    yield found


class TestProducts:
    QKV = drawn(3, 2, 3, 5, 8).double()

    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"scale": 0.5},
            {"attn_mask": drawn(5, 5).double()},
            {"attn_mask": torch.ones(5, 5).tril().bool()},
            {"is_causal": True},
        ],
        ids=lambda options: next(iter(options), "plain"),
    )
    def test_numbers_and_gradients_of_torchs(self, options: Any) -> None:
        leaf = self.QKV.clone().requires_grad_(True)
        truth = functional.scaled_dot_product_attention(*leaf, **options)
        with ChosenAttention(lambda *_: True):
            found = functional.scaled_dot_product_attention(*leaf, **options)
        assert torch.allclose(found, truth, rtol=1e-12, atol=1e-14)
        weight = drawn(*truth.shape).double()
        ours, theirs = (torch.autograd.grad((z * weight).sum(), leaf)[0] for z in (found, truth))
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-14)

    @pytest.mark.parametrize("shape", [(5, 8), (3, 5, 8), (2, 3, 4, 5, 8)], ids=len)
    @pytest.mark.parametrize("masked", [False, True])
    def test_any_number_of_leading_axes(self, shape: tuple[int, ...], masked: bool) -> None:
        query, key, value = (drawn(*shape).double() + n for n in range(3))
        key, value = key[..., :4, :], value[..., :4, :]
        mask = drawn(*shape[:-2], 5, 4).double() if masked else None
        truth = functional.scaled_dot_product_attention(query, key, value, mask)
        with ChosenAttention(lambda *_: True):
            found = functional.scaled_dot_product_attention(query, key, value, mask)
        assert torch.allclose(found, truth, rtol=1e-12, atol=1e-14)

    def test_keys_that_are_broadcast_go_to_torchs(self) -> None:
        query, key, value = self.QKV
        truth = functional.scaled_dot_product_attention(query, key[:1], value[:1])
        with ChosenAttention(lambda *_: True):
            found = functional.scaled_dot_product_attention(query, key[:1], value[:1])
        assert torch.equal(found, truth)

    def test_a_trained_mask_has_its_gradient(self) -> None:
        query, key, value = self.QKV
        mask = drawn(1, 3, 5, 5).double().requires_grad_(True)  # one a head, as Swin's
        grads = []
        for choice in (True, False):
            with ChosenAttention(lambda *_, choice=choice: choice):
                out = functional.scaled_dot_product_attention(query, key, value, mask)
            grads += torch.autograd.grad(out.square().sum(), mask)
        assert torch.allclose(*grads, rtol=1e-10, atol=1e-12)

    def test_too_many_tokens_go_to_torchs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(attention, "MOST_TOKENS", 4)
        query, key, value = self.QKV.float()
        with ChosenAttention(lambda *_: True), Fused() as counted:
            functional.scaled_dot_product_attention(query, key, value)
        assert counted.count == 1


def counts(engine: Engine) -> tuple[int, int]:
    """Fused kernels in a gradient and in a forward of two layers of attention."""
    model, x = tiny("vit_tiny_patch16_224"), images(2, 3, 8, 8)
    with InputGradient(engine.bind(model)) as gradient:
        for first in (gradient, gradient.evaluate):  # which compare one image folded and plain
            first(x, Y)
        with Fused() as in_gradient:
            gradient(x, Y)
        with Fused() as in_forward:
            gradient.evaluate(x, Y)
    return in_gradient.count, in_forward.count


class TestChoice:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_forced_ones_are_honoured_without_measuring(
        self, measured: list[Any], dtype: torch.dtype
    ) -> None:
        assert counts(Engine(dtype=dtype, attention="products")) == (0, 0)
        assert counts(Engine(dtype=dtype, attention="fused")) == (2, 2)
        assert not measured

    def test_auto_measures_in_a_short_dtype_once_a_case(self, measured: list[Any]) -> None:
        engine = Engine(dtype=torch.bfloat16)
        with ops.use_backend("reference"):  # with kernels there is nothing to measure for gradients
            assert [counts(engine), counts(engine)] == [(0, 2)] * 2
        assert [(dtype, graph) for _, dtype, graph in measured] == [
            (torch.bfloat16, True),
            (torch.bfloat16, False),
        ]

    def test_auto_is_torchs_kernel_in_fp32(self, measured: list[Any]) -> None:
        assert counts(Engine()) == (2, 2) and not measured

    def test_auto_is_torchs_kernel_on_a_gpu(self) -> None:
        assert not isinstance(attention_by("auto", "cuda", torch.bfloat16), ChosenAttention)
        assert isinstance(attention_by("products", "cuda", torch.bfloat16), ChosenAttention)

    def test_a_batch_that_shrinks_is_measured_at_powers_of_two(self, measured: list[Any]) -> None:
        for batch in range(9, 0, -1):
            products_are_quicker(*case(batch))
        assert [shape[0] for shape, _, _ in measured] == [8, 4, 2, 1]

    def test_a_large_batch_is_measured_in_part(
        self, measured: list[Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(attention, "MEASURED_SCORES", 2 * 25 * 5)  # heads, tokens squared
        for batch in (8, 9, 64):
            products_are_quicker(*case(batch))
        assert measured == [((4, 2, 5, 8), torch.bfloat16, True)]

    def test_threads_and_dtype_are_cases_of_their_own(
        self, measured: list[Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        products_are_quicker(*case())
        products_are_quicker(*case(dtype=torch.float16))
        monkeypatch.setattr(torch, "get_num_threads", lambda: 97)
        products_are_quicker(*case())
        assert len(measured) == 3

    def test_nothing_is_measured_while_torch_compiles(
        self, measured: list[Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        assert products_are_quicker(*case()) and not products_are_quicker(*case(graph=False))
        assert not measured


class TestMeasuring:
    @pytest.mark.parametrize("slow", ["_products", "_fused"])
    @pytest.mark.parametrize("graph", [True, False])
    def test_the_quicker_one_is_chosen(
        self, slow: str, graph: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        compute: Callable[..., Tensor] = getattr(attention, slow)

        def slowly(*arguments: Any) -> Tensor:
            time.sleep(0.05)
            return compute(*arguments)

        monkeypatch.setattr(attention, slow, slowly)
        assert products_are_quicker(*case(graph=graph)) == (slow == "_fused")

    @pytest.mark.parametrize("mask", [None, drawn(5, 5), drawn(3, 1, 5, 5), drawn(1, 2, 5, 5)])
    def test_nothing_is_left_behind(self, mask: Tensor | None) -> None:
        query, key, value, _, scale = case()
        before = [t.detach().clone() for t in (query, key, value)]
        state = torch.get_rng_state()
        products_are_quicker(query, key, value, mask, scale)
        assert torch.equal(torch.get_rng_state(), state)
        assert all(map(torch.equal, before, (query, key, value)))
        assert query.grad is None and query.is_leaf and not key.requires_grad

    @pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
    def test_without_autograd_it_measures_forwards(self, around: Any) -> None:
        with around():
            products_are_quicker(*case())
        ((*_, graph, _threads),) = attention._chosen
        assert graph is False

    def test_both_agree_in_bf16(self) -> None:
        model, x = tiny("vit_tiny_patch16_224"), images(2, 3, 8, 8)
        found = []
        for choice in ("products", "fused", "auto"):
            engine = Engine(dtype=torch.bfloat16, attention=choice)  # type: ignore[arg-type]
            with InputGradient(engine.bind(model)) as gradient:
                found.append(gradient(x, Y))
        for grad, _loss, logits in found[1:]:
            assert torch.allclose(logits, found[0][2], atol=0.02 * found[0][2].abs().max().item())
            cosine = functional.cosine_similarity(grad.flatten(1), found[0][0].flatten(1))
            assert (cosine > 0.98).all()
