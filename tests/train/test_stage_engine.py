"""The engine of a stage: what trains in bf16, what stays in fp32, and who gets it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from small import run_small, weights
from tiny_models import SIZES, images, tiny, untouched
from torch import Tensor, nn

from roli_fast.attacks import PGD
from roli_fast.data import Batch
from roli_fast.engine import Engine
from roli_fast.errors import ArgumentError
from roli_fast.evaluate import accuracy
from roli_fast.train import run_directory
from roli_fast.train.objectives import Adversarial, Step
from roli_fast.train.objectives.base import attacked
from roli_fast.train.stage import Stage

ONE = ["--methods=ranli", "--ranli.batch_size=24", "--ranli.epochs=1", "--ranli.attack.steps=2"]
ATTACK = PGD(eps=0.05, step_size=None, steps=2)


def a_batch(count: int = 4, side: int = 8) -> Batch:
    return Batch(images(count, 3, side, side), torch.arange(count) % 5, torch.arange(count))


def source() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def step(
    model: nn.Module, engine: Engine, attack: PGD | None = ATTACK, batch: Batch | None = None
) -> Tensor:
    """One step as the loop makes it; returns its loss, with the gradients in the model."""
    with engine.training(torch.device("cpu")):
        terms = Adversarial()(Step(model, batch or a_batch(), attack, source(), engine))
    terms.loss.backward()
    return terms.loss.detach()


def test_the_default_is_plain_training_bit_for_bit() -> None:
    model, plain = tiny("vit_tiny_patch16_224"), tiny("vit_tiny_patch16_224")
    batch = a_batch()
    x_adv = ATTACK(plain, batch.x, batch.y, source(), sample_ids=batch.ids)
    loss = nn.functional.cross_entropy(plain(x_adv), batch.y, reduction="none").mean()
    loss.backward()
    assert torch.equal(step(model, Engine()), loss.detach())
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None and theirs.grad is not None
        assert torch.equal(ours.grad, theirs.grad)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18"])
def test_bf16_is_in_the_passes_alone(name: str) -> None:
    """And is no further from fp32 than torch's own autocast, with any number of threads."""
    model, plain = tiny(name), tiny(name)
    seen: list[torch.dtype] = []
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    linear.register_forward_hook(lambda _m, _x, out: seen.append(out.dtype))
    # torch 2.11's weight gradient of a convolution whose map is 1 x 1 reads memory nobody wrote
    batch = a_batch(side=SIZES[name])
    loss = step(model, Engine(dtype=torch.bfloat16), None, batch)
    truth = step(plain, Engine(), None, batch)
    assert seen == [torch.bfloat16] and loss.dtype == torch.float32
    assert abs(loss - truth) < 0.02 * truth and loss != truth
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert ours.dtype == torch.float32
        assert ours.grad is not None and theirs.grad is not None
        assert ours.grad.dtype == torch.float32
    by_torch = tiny(name)
    with torch.autocast("cpu", torch.bfloat16):
        logits = by_torch(batch.x.contiguous(memory_format=torch.channels_last))
    nn.functional.cross_entropy(logits.float(), batch.y).backward()
    assert away(model, plain) <= 1.1 * away(by_torch, plain) < 0.1


def away(model: nn.Module, truth: nn.Module) -> float:
    """1 - cosine of the gradients; on few small maps bf16 costs torch itself some percent."""
    grads = [torch.cat([p.grad.flatten() for p in m.parameters()]) for m in (model, truth)]  # type: ignore[union-attr]
    return 1 - nn.functional.cosine_similarity(*grads, dim=0).item()


def test_the_attack_is_that_of_the_engine_alone() -> None:
    """Autocast of the training step has no part in it: the images are those of a plain call."""
    model, batch, engine = tiny("resnet18"), a_batch(), Engine(dtype=torch.bfloat16, batch_size=2)
    truth = ATTACK(model, batch.x, batch.y, source(), engine=engine, sample_ids=batch.ids)
    with untouched(model), engine.training(torch.device("cpu")):
        found = attacked(Step(model, batch, ATTACK, source(), engine))
        assert torch.is_autocast_enabled("cpu")
    assert torch.equal(found, truth)


@pytest.mark.parametrize("attack", [None, ATTACK], ids=["clean", "attacked"])
def test_images_have_the_engines_layout(attack: PGD | None) -> None:
    model, batch = tiny("resnet18"), a_batch()
    for engine, last in ((Engine(), False), (Engine(dtype=torch.bfloat16), True)):
        found = attacked(Step(model, batch, attack, source(), engine))
        assert found.is_contiguous(memory_format=torch.channels_last) == last
        assert found.is_contiguous() != last
    assert attacked(Step(model, batch, None, source(), Engine())) is batch.x


def test_a_model_that_views_maps_is_told_what_to_set() -> None:
    class Viewing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8 * 36, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.conv(x).view(len(x), -1))

    with pytest.raises(ArgumentError, match="`channels_last`: expected False for a model.*reshape"):
        step(Viewing(), Engine(dtype=torch.bfloat16))
    step(Viewing(), Engine(dtype=torch.bfloat16, channels_last=False))
    with pytest.raises(RuntimeError, match="boom"), Engine().training(torch.device("cpu")):
        raise RuntimeError("boom")


def test_all_searches_in_bf16_and_what_they_find_confirmed_in_fp32(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """(whether it trains, whether a graph is made, dtype) of the model's passes; and TF32, in the
    backward of an update too."""
    seen: set[Any] = set()
    settings: set[Any] = set()
    create, search, searched = run_directory.create, accuracy.search, []

    def note(_grad: Tensor | None = None) -> None:
        settings.add(torch.backends.cuda.matmul.fp32_precision)

    def confirmed(attack: Any, inputs: Any) -> Any:
        found = search(attack, inputs)
        with torch.no_grad():
            wrong = inputs.model.model(found.result.x_adv).argmax(1) != inputs.y
        assert torch.equal(found.result.fooled, wrong)
        searched.append((attack.label, inputs.model.engine.dtype))
        return found

    def hooked(*arguments: Any, **options: Any) -> Any:
        model = create(*arguments, **options)
        linear = [m for m in model.modules() if isinstance(m, nn.Linear)][-2]

        def look(_module: nn.Module, _given: Any, out: Tensor) -> None:
            seen.add((model.training, out.requires_grad, out.dtype))
            if model.training:
                note()
                out.register_hook(note)

        linear.register_forward_hook(look)
        return model

    monkeypatch.setattr(run_directory, "create", hooked)
    monkeypatch.setattr(accuracy, "search", confirmed)
    flags = ["--ranli.engine.dtype=bfloat16", "--ranli.engine.tf32=true"]
    run_small(tmp_path / "run", *ONE, *flags)
    short, full = torch.bfloat16, torch.float32
    assert seen == {
        (True, True, short),  # the training step
        (False, True, short),  # its attack
        (False, False, full),  # what confirms what validation and test find, and clean accuracy
    }
    assert settings == {"tf32"} and torch.backends.cuda.matmul.fp32_precision != "tf32"
    assert set(searched) == {("pgd-2", short), ("pgd-3", short)}
    for tensors in weights(tmp_path / "run").values():
        assert not any(t.dtype == short for t in tensors.values())


def test_fp16_is_refused() -> None:
    with pytest.raises(ArgumentError, match="`engine.dtype`: expected float32 or bfloat16, got fl"):
        Stage(engine=Engine(dtype=torch.float16))
