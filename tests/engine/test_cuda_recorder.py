"""CUDA graphs on a real device: the same images as an ordinary run, and clean failures.

What is around them is tested on any machine, in test_graph.py.
"""

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_models import SIZES, Mixed, images, tiny, untouched
from torch import Tensor, nn

from roli_fast.attacks import FGSM, NFGSM, PGD, RSFGSM, Attack
from roli_fast.engine import Engine, cuda_recorder, forget_graphs, graph
from roli_fast.peft import Adapter, LoRA, Prompt, apply

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

OFF, AUTO, ON = (Engine(cuda_graph=mode) for mode in (False, "auto", True))


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    """Kernels that give the same bits each time, so that equality is a fair question."""
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = True, False
    yield
    torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = before


def run(model: Any, engine: Engine, seed: int, side: int, attack: Attack) -> Tensor:
    """Images, labels and draws by the seed."""
    x = images(4, 3, side, side, seed=seed).cuda()
    y = torch.tensor([0, 3, 1, 2], device="cuda").roll(seed)
    return attack(model, x, y, torch.Generator("cuda").manual_seed(seed), engine=engine)


def change(model: nn.Module) -> None:
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.mul_(1 + 0.05 * (-1) ** number)


def recorded(model: nn.Module) -> bool:
    return graph.graphs_of(model).reason == "" and any(
        slot.recording is not None for slot in graph.graphs_of(model)._slots.values()
    )


def same(found: Tensor, plain: Tensor) -> bool:
    """Bit for bit, but for a few signs of a gradient near zero where a kernel adds in any order."""
    return bool((found != plain).float().mean() < 2e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", SIZES)
def test_replays_are_ordinary_runs(name: str, dtype: torch.dtype) -> None:
    """Through three updates of the weights, for networks of all kinds."""
    model, side, attack = tiny(name).cuda(), SIZES[name], PGD(steps=3)
    for seed in range(5):
        with untouched(model):
            found = run(model, Engine(dtype=dtype), seed, side, attack)
        assert same(found, run(model, Engine(dtype=dtype, cuda_graph=False), seed, side, attack))
        assert recorded(model) is (seed > 0)
        if seed > 1:
            change(model)


EVERY: list[Attack] = [
    PGD(steps=3, keep="best", momentum=0.9, eot=2),
    PGD(steps=3, norm="l2", eps=0.5, step_size=0.1),
    PGD(steps=2, loss="kl"),
    PGD(steps=2, random_start=False, loss="dlr", step_size=None),
    FGSM(),
    RSFGSM(),
    NFGSM(),
]


@pytest.mark.parametrize("attack", EVERY, ids=lambda a: f"{type(a).__name__}-{a.label}-{a.norm}")
def test_attacks(attack: Attack) -> None:
    model = Mixed().cuda()
    for seed in range(3):
        assert same(run(model, ON, seed, 6, attack), run(model, OFF, seed, 6, attack))
    assert recorded(model)


def test_l1_steps_are_recorded_or_refused() -> None:
    """Whether its projection waits for the device is the kernel's business; results are not."""
    model, attack = Mixed().cuda(), PGD(steps=2, norm="l1", eps=5, step_size=1)
    for seed in range(3):
        assert same(run(model, ON, seed, 6, attack), run(model, OFF, seed, 6, attack))


@pytest.mark.parametrize("method", [LoRA(rank=2), Adapter(reduction=4), Prompt(tokens=3)])
def test_tuned_models(method: Any) -> None:
    model, attack = tiny(), PGD(steps=3)
    apply(model, method, seed=0)
    model.cuda()
    for seed in range(4):
        assert same(run(model, AUTO, seed, 8, attack), run(model, OFF, seed, 8, attack))
        change(model)
    assert recorded(model)


class Waiting(Mixed):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1.0 if x.detach().sum().item() > 0 else 2.0)


class Copying(Mixed):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.ones(4).to(x.device)


class Synchronizing(Mixed):
    """Not found by torch's watch over waiting: this breaks the recording itself."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.cuda.is_current_stream_capturing():
            torch.cuda.synchronize()
        return super().forward(x)


class Raising(Mixed):
    def forward(self, x: Tensor) -> Tensor:
        if torch.cuda.is_current_stream_capturing():
            raise ValueError("not while recorded")
        return super().forward(x)


@pytest.mark.parametrize("kind", [Waiting, Copying, Raising, Synchronizing])
def test_a_failure_leaves_nothing_behind(
    kind: type[nn.Module], caplog: pytest.LogCaptureFixture
) -> None:
    """Stream, allocator, random state and later recordings are in order."""
    model, attack, stream = kind().cuda(), PGD(steps=2), torch.cuda.current_stream()
    torch.cuda.manual_seed(7)
    for seed in range(3):
        assert same(run(model, ON, seed, 6, attack), run(model, OFF, seed, 6, attack))
    warnings = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1 and "cannot be recorded" in warnings[0].getMessage()
    assert torch.cuda.current_stream() == stream
    assert not torch.cuda.is_current_stream_capturing()
    assert torch.cuda.get_sync_debug_mode() == 0
    drawn = torch.rand(5, device="cuda")
    torch.cuda.manual_seed(7)
    assert torch.equal(drawn, torch.rand(5, device="cuda"))
    other = Mixed().cuda()
    for seed in range(3):
        assert same(run(other, ON, seed, 6, attack), run(other, OFF, seed, 6, attack))
    assert recorded(other)
    torch.cuda.empty_cache()
    torch.cuda.synchronize()


def test_recordings_that_take_much_memory(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cuda_recorder, "SHARE", -1.0)
    model, attack = Mixed().cuda(), PGD(steps=2)
    for seed in range(3):
        assert same(run(model, AUTO, seed, 6, attack), run(model, OFF, seed, 6, attack))
    assert "GiB of device memory (cuda_graph=True allows it)" in caplog.text
    forget_graphs(model)
    run(model, ON, 0, 6, attack)
    assert recorded(model)


def test_training_between_replays() -> None:
    """Two models with the same start, trained on images made with and without a recording."""
    trained = []
    for engine in (AUTO, OFF):
        model = tiny().cuda()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        for seed in range(6):
            x = run(model, engine, seed, 8, PGD(steps=3))
            y = torch.tensor([0, 3, 1, 2], device="cuda").roll(seed)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        trained.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.allclose(*trained, rtol=1e-3, atol=1e-4)


def test_memory_is_given_back() -> None:
    attack, held = PGD(steps=2), []
    for _ in range(3):
        model = Mixed().cuda()
        run(model, ON, 0, 6, attack)
        run(model, ON, 1, 6, attack)
        del model
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        held.append(torch.cuda.memory_allocated())
    assert held[0] >= held[1] >= held[2]


def test_a_compiled_model_is_recorded() -> None:
    model, attack = Mixed().cuda(), PGD(steps=2)
    on = replace(ON, compile=True)
    for seed in range(3):
        found, plain = run(model, on, seed, 6, attack), run(model, OFF, seed, 6, attack)
        assert (found != plain).float().mean() < 0.05  # compiled kernels round differently
    assert recorded(model)
