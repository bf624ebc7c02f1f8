"""The engine of a stage: what trains in bf16, what stays in fp32, and who gets it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from small import before_stages, run_small, weights
from tiny_models import SIZES, images, tiny, untouched
from torch import Tensor, nn

from roli_fast.attacks import PGD, recheck
from roli_fast.data import Batch
from roli_fast.engine import Engine
from roli_fast.errors import ArgumentError
from roli_fast.train.loop import StageLoop
from roli_fast.train.objectives import Adversarial, Step
from roli_fast.train.objectives.base import attacked
from roli_fast.train.stage import Stage

ATTACK = PGD(eps=0.05, step_size=None, steps=2)


def a_batch(side: int = 8) -> Batch:
    return Batch(images(4, 3, side, side), torch.arange(4) % 5, torch.arange(4))


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


def gradient(model: nn.Module) -> Tensor:
    """Of all weights, in one vector."""
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_the_default_is_plain_training_bit_for_bit() -> None:
    model, plain = tiny("vit_tiny_patch16_224"), tiny("vit_tiny_patch16_224")
    batch = a_batch()
    x_adv = ATTACK(plain, batch.x, batch.y, source(), sample_ids=batch.ids)
    loss = nn.functional.cross_entropy(plain(x_adv), batch.y, reduction="none").mean()
    loss.backward()
    assert torch.equal(step(model, Engine()), loss.detach())
    assert torch.equal(gradient(model), gradient(plain))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18"])
def test_bf16_is_in_the_passes_alone(name: str) -> None:
    """And is no further from fp32 than torch's own autocast, with any number of threads."""
    model, plain, by_torch = tiny(name), tiny(name), tiny(name)
    seen: list[torch.dtype] = []
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    linear.register_forward_hook(lambda _m, _x, out: seen.append(out.dtype))
    # torch 2.11's weight gradient of a convolution whose map is 1 x 1 reads memory nobody wrote
    batch = a_batch(side=SIZES[name])
    loss = step(model, Engine(dtype=torch.bfloat16), None, batch)
    truth = step(plain, Engine(), None, batch)
    assert seen == [torch.bfloat16] and loss.dtype == torch.float32
    assert abs(loss - truth) < 0.02 * truth and loss != truth
    with torch.autocast("cpu", torch.bfloat16):
        logits = by_torch(batch.x.contiguous(memory_format=torch.channels_last))
    nn.functional.cross_entropy(logits.float(), batch.y).backward()

    def away(other: nn.Module) -> float:
        """On few small maps bf16 costs torch itself some percent."""
        return 1 - torch.cosine_similarity(gradient(other), gradient(plain), dim=0).item()

    assert away(model) <= 1.1 * away(by_torch) < 0.1


def test_the_attack_is_that_of_the_engine_alone() -> None:
    """Autocast of the training step has no part in it: the images are those of a plain call, in
    the engine's layout."""
    model, batch, engine = tiny("resnet18"), a_batch(), Engine(dtype=torch.bfloat16, batch_size=2)
    truth = ATTACK(model, batch.x, batch.y, source(), engine=engine, sample_ids=batch.ids)
    with untouched(model), engine.training(torch.device("cpu")):
        found = attacked(Step(model, batch, ATTACK, source(), engine))
        assert torch.is_autocast_enabled("cpu")
    assert torch.equal(found, truth)
    clean = attacked(Step(model, batch, None, source(), engine))
    for layout in (found, clean):
        assert layout.is_contiguous(memory_format=torch.channels_last)
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


def test_all_searches_in_bf16_and_what_they_find_confirmed_in_fp32(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """(whether it trains, whether a graph is made, dtype) of the model's passes; and TF32, in the
    forward and backward of updates alone."""
    seen: set[Any] = set()
    settings: set[Any] = set()
    search, searched = recheck.search, []

    def note(_grad: Tensor | None = None) -> None:
        settings.add(torch.backends.cuda.matmul.fp32_precision)

    def confirmed(attack: Any, inputs: Any) -> Any:
        found = search(attack, inputs)
        with torch.no_grad():
            wrong = inputs.model.model(found.result.x_adv).argmax(1) != inputs.y
        assert torch.equal(found.result.fooled, wrong)
        searched.append((attack.label, inputs.model.engine.dtype))
        return found

    def look(module: nn.Module, _given: Any, out: Tensor) -> None:
        seen.add((module.training, out.requires_grad, out.dtype))
        if module.training:
            note()
            out.register_hook(note)

    def hook(stage: StageLoop) -> None:
        linear = [m for m in stage.model.modules() if isinstance(m, nn.Linear)][-2]
        linear.register_forward_hook(look)

    before_stages(monkeypatch, hook)
    monkeypatch.setattr(recheck, "search", confirmed)
    flags = ["--methods=ranli", "--ranli.batch_size=24", "--ranli.epochs=1"]
    flags += ["--ranli.attack.steps=2", "--ranli.engine.tf32=true"]
    flags += ["--ranli.engine.dtype=bfloat16"]
    run_small(tmp_path / "run", *flags)
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
