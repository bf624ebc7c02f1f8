"""TF32 as an engine asks for it: in forwards and backwards, and afterwards as it was."""

import warnings
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_models import Mixed, images
from torch import Tensor

from roli_fast.engine import Engine, InputGradient, tf32
from roli_fast.engine.tf32 import set_tf32
from roli_fast.losses import cross_entropy

X, Y = images(4, 3, 6, 6), torch.tensor([0, 3, 1, 2])
CUDNN = torch.backends.cudnn
NEWER = [torch.backends.cuda.matmul, torch.backends.mkldnn, CUDNN]
NEWER = [getattr(b, "matmul", getattr(b, "conv", b)) for b in NEWER] + [getattr(CUDNN, "rnn", None)]
NEWER = [setting for setting in NEWER if hasattr(setting, "fp32_precision")]
NEEDED = pytest.mark.skipif(len(NEWER) < 4, reason="torch < 2.9")


def seen() -> list[object]:
    """What every name says of TF32, "mixed" where torch refuses to."""
    older: list[Callable[[], object]] = [
        torch.get_float32_matmul_precision,
        lambda: torch.backends.cuda.matmul.allow_tf32,
        lambda: CUDNN.allow_tf32,
    ]
    found: list[object] = [setting.fp32_precision for setting in NEWER]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for switch in older:
            try:
                found.append(switch())
            except RuntimeError:
                found.append("mixed")
    return found


@pytest.fixture(autouse=True)
def put_back() -> Iterator[None]:
    before = [(setting, setting.fp32_precision) for setting in NEWER]
    yield
    if NEWER:
        torch.backends.fp32_precision = "none"  # pyright: ignore
    torch.set_float32_matmul_precision("highest")
    CUDNN.allow_tf32 = True
    for setting, value in before:
        setting.fp32_precision = value


WAYS: dict[str, Callable[[], object]] = {
    "nothing": lambda: None,
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "convolutions": lambda: setattr(CUDNN, "allow_tf32", False),
    "newer products": lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
    "all backends": lambda: setattr(torch.backends, "fp32_precision", "tf32"),
    "newer convolutions": lambda: setattr(NEWER[2], "fp32_precision", "ieee"),
}


@NEEDED
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("allowed", [True, False])
def test_by_every_name_and_put_back(way: str, allowed: bool) -> None:
    WAYS[way]()
    before = seen()
    with pytest.raises(ZeroDivisionError), set_tf32(allowed):
        products, *_, precision, by_switch, convolutions = seen()
        assert products == NEWER[2].fp32_precision == ("tf32" if allowed else "ieee")
        assert (by_switch, convolutions) == (allowed, allowed)
        if way not in ("medium", "all backends"):  # which hold for products on CPUs as well
            assert precision == ("high" if allowed else "highest")
        raise ZeroDivisionError
    after = seen()
    assert [new for old, new in zip(before, after, strict=True) if old != "mixed"] == [
        old for old in before if old != "mixed"
    ]


def test_by_the_older_names_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch 2.6 to 2.8, where the precision of products is the same switch."""
    matmul, cudnn = SimpleNamespace(allow_tf32=False), SimpleNamespace(allow_tf32=True)
    backends = SimpleNamespace(
        cuda=SimpleNamespace(matmul=matmul), cudnn=cudnn, mkldnn=SimpleNamespace()
    )
    older = SimpleNamespace(
        backends=backends,
        get_float32_matmul_precision=lambda: "high" if matmul.allow_tf32 else "highest",
        set_float32_matmul_precision=lambda v: setattr(matmul, "allow_tf32", v != "highest"),
    )
    monkeypatch.setattr(tf32, "torch", older)
    for allowed in (True, False):
        with set_tf32(allowed):
            assert (matmul.allow_tf32, cudnn.allow_tf32) == (allowed, allowed)
        assert (matmul.allow_tf32, cudnn.allow_tf32) == (False, True)


class Noting(torch.autograd.Function):
    """Notes the setting in forward and backward."""

    found: list[object] = []

    @staticmethod
    def forward(_context: Any, x: Tensor) -> Tensor:  # pyright: ignore
        Noting.found.append(torch.backends.cuda.matmul.fp32_precision)
        return x.clone()

    @staticmethod
    def backward(_context: Any, grad: Tensor) -> Tensor:  # pyright: ignore
        Noting.found.append(torch.backends.cuda.matmul.fp32_precision)
        return grad


class Noted(Mixed):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(Noting.apply(x))  # pyright: ignore


@NEEDED
@pytest.mark.parametrize(("asked", "found"), [(True, "tf32"), (False, "ieee"), (None, None)])
def test_in_every_pass(asked: Any, found: str | None) -> None:
    before, model = seen(), Engine(tf32=asked).bind(Noted())
    Noting.found.clear()
    with InputGradient(model) as gradient:
        gradient(X, Y)
        gradient.evaluate(X, Y)
        gradient.keep(X, Y).gradient(cross_entropy)
        assert seen() == before
    model(X)
    assert Noting.found == [found or before[0]] * 6 and seen() == before


def test_what_checks_a_search_keeps_a_ban_alone() -> None:
    """And a find in TF32 is searched again where the plain model does not confirm it."""
    for asked, plain, exact in ((True, None, False), (False, False, True), (None, None, True)):
        engine = Engine(tf32=asked)
        assert (engine.plain.tf32, engine.exact) == (plain, exact)
