"""Features, logits, labels and ids of many samples, clean and attacked."""

import pytest
import torch
from text_encoder import TextEncoder, token_batches
from tiny_models import SIZES, SMALL, Mixed, images, tiny, untouched

from roli_fast import PGD
from roli_fast.analysis import LinearHead, gather, robust_drift
from roli_fast.data import Batch
from roli_fast.engine import Engine
from roli_fast.errors import ArgumentError, ArgumentTypeError
from roli_fast.evaluate import evaluate
from roli_fast.seeds import derived_generator

PGD_L2 = PGD("l2", eps=0.5, step_size=0.2, steps=3)
"""Steps in l2 are continuous in the gradient: another batch's rounding stays rounding."""


def batches_of(count: int, side: int, size: int, classes: int = 5) -> list[Batch]:
    x, y, ids = images(count, 3, side, side), torch.arange(count) % classes, torch.arange(count) + 9
    return [
        Batch(*part) for part in zip(x.split(size), y.split(size), ids.split(size), strict=True)
    ]


def whole(batches: list[Batch]) -> Batch:
    return Batch(*(torch.cat(parts) for parts in zip(*batches, strict=True)))


@pytest.mark.parametrize("name", SMALL)
def test_samples_of_real_networks_clean_and_attacked(name: str) -> None:
    model, batches = tiny(name).train(), batches_of(4, SIZES[name], 2)
    with untouched(model):
        found = gather(model, batches, PGD(steps=2), seed=3, keep_images=True)
        clean = gather(model, batches)
    x, y, ids = whole(batches)
    model.eval()
    with torch.no_grad():
        assert torch.allclose(clean.features, model.features(x), atol=1e-5)
        assert torch.allclose(clean.logits, model(x), atol=1e-5)
        assert torch.allclose(model.head(clean.features), clean.logits, atol=1e-5)
    assert torch.equal(clean.y, y) and torch.equal(clean.ids, ids)
    assert len(clean) == 4 and clean.x is None and not clean.features.requires_grad
    for place, (x, y, ids) in enumerate(batches):
        draws = derived_generator("evaluate", 3, "pgd-2")
        x_adv = PGD(steps=2)(model, x, y, draws, sample_ids=ids)
        part = slice(2 * place, 2 * place + 2)
        assert found.x is not None and torch.equal(found.x[part], x_adv)
        assert torch.equal(found.features[part], model.features(x_adv))
    assert robust_drift(clean.features, found.features).absolute > 0


def test_a_text_encoder() -> None:
    model, batches = TextEncoder().train(), token_batches()
    with untouched(model):
        found = gather(model, batches, keep_images=True)
    x, y, ids = whole(batches)
    assert found.features.shape == (7, 8) and found.logits.shape == (7, 3)
    assert torch.equal(found.y, y) and torch.equal(found.ids, ids)
    assert found.x is not None and torch.equal(found.x, x) and found.x.dtype == torch.int64
    assert torch.allclose(found.logits, model.eval()(x), atol=1e-6)
    with pytest.raises(ArgumentTypeError, match="floating-point tensor"):
        gather(model, batches, PGD())


def test_the_attack_is_that_of_an_evaluation() -> None:
    model, attack = tiny(num_classes=3), PGD(eps=0.2, step_size=0.1, steps=2)
    x, _, ids = whole(batches_of(8, 8, 8, 3))
    y = model.eval()(x).argmax(1)  # all right, so that all are attacked there too
    batch = [Batch(x, y, ids)]
    found = gather(model, batch, attack, seed=2)
    robust = evaluate(model, batch, [attack], seed=2).robust["pgd-2"]
    assert torch.equal(found.logits.argmax(1) == y, robust)
    assert 0 < robust.sum() < 8


def test_engines_attack_and_the_plain_model_looks() -> None:
    model, batches = tiny(), batches_of(4, 8, 4)
    short = gather(model, batches, PGD_L2, engine=Engine(dtype=torch.bfloat16), keep_images=True)
    assert short.x is not None and short.x.dtype == torch.float32
    assert torch.equal(short.features, model.eval().features(short.x))


def test_a_model_in_fp64_or_half_and_a_view() -> None:
    model, batches = tiny().double(), batches_of(3, 8, 2)
    wide = [batch._replace(x=batch.x.double()) for batch in batches]
    assert gather(LinearHead.of(model), wide).features.dtype == torch.float64
    half = [batch._replace(x=batch.x.bfloat16()) for batch in batches]
    found = gather(tiny().bfloat16(), half)
    assert found.features.dtype == found.logits.dtype == torch.float32


def test_a_stop_gives_the_model_back() -> None:
    model, done = Mixed(), []

    def stop(count: int) -> None:
        done.append(count)
        if len(done) == 2:
            raise KeyboardInterrupt

    with untouched(model), pytest.raises(KeyboardInterrupt):
        gather(LinearHead.of(model, "head"), batches_of(5, 6, 2, 4), PGD(steps=1), after_batch=stop)
    assert done == [2, 2] and not model.head._forward_hooks


def test_wrong_calls() -> None:
    model, batches = tiny(), batches_of(3, 8, 3)
    (batch,) = batches
    with pytest.raises(ArgumentError, match="`batches`: expected at least one sample, got none"):
        gather(model, [])
    with pytest.raises(ArgumentError, match="labels in"):
        gather(model, [batch._replace(y=batch.y + 3)])
