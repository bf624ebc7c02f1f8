"""CUDA graphs: how a recording is made and what is put right where it fails, on a device that is
played here; and on a real one the same images as an ordinary run, and clean failures.

What is around them is tested on any machine, in test_graph.py.
"""

import gc
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_models import SIZES, Mixed, images, tiny, untouched
from torch import Tensor, nn

from roli_fast.attacks import APGD, FGSM, PGD, Attack
from roli_fast.engine import Engine, compiled, forget, graph
from roli_fast.engine.graph import CudaRecorder
from roli_fast.peft import Adapter, LoRA, Prompt, apply

FOUND = (torch.ones(1),)


class Played:
    """A device that writes down what is asked of it, with torch's allocator: how many recordings
    use each pool, and which pools are being recorded into."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.mode = 1  # what the caller has set: "warn"
        self.warned = False
        self.stream = "caller's"
        self.end_fails = False
        self.left, self.total = 80, 100
        self.takes = 10
        self.recording = False
        self.pools = 0
        self.uses: dict[tuple[int, int], int] = {}
        self.under_way: list[tuple[int, int]] = []

    def pool(self) -> tuple[int, int]:
        self.pools += 1
        return (0, self.pools)

    def begin(self, pool: tuple[int, int]) -> None:
        if pool in self.under_way:
            raise RuntimeError(f"already recording to mempool_id {pool}")
        self.under_way.append(pool)
        self.uses[pool] = self.uses.get(pool, 0) + 1

    def end(self, _device: int, pool: tuple[int, int]) -> None:
        if pool not in self.under_way:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.under_way.remove(pool)

    def release(self, _device: int, pool: tuple[int, int]) -> None:
        self.uses[pool] -= 1
        assert self.uses[pool] >= 0

    def empty_cache(self) -> None:
        assert not self.under_way, "captures_underway.empty() INTERNAL ASSERT FAILED"

    def set_mode(self, mode: int | str) -> None:
        self.mode = {"default": 0, "warn": 1, "error": 2}.get(mode, mode)  # type: ignore[arg-type, assignment]
        if not self.warned:  # TORCH_WARN_ONCE, after the mode is set
            self.warned = True
            warnings.warn("Synchronization debug mode is a prototype feature", stacklevel=2)

    def clone_state(self) -> str:
        return "state of before"

    def graphsafe_set_state(self, state: str) -> None:
        self.log.append(f"generator: {state}")

    def wait_stream(self, _other: object) -> None:
        self.log.append("wait")

    @contextmanager
    def graph(
        self, made: "PlayedGraph", pool: Any, _stream: object, capture_error_mode: str
    ) -> Iterator[None]:
        assert capture_error_mode == "thread_local"
        self.empty_cache()
        self.begin(pool)
        self.stream, self.recording = "recording's", True
        try:
            yield
        finally:  # also after an error, as torch does
            self.recording = False
            if self.end_fails:  # before the allocator is told, and its stream stays
                raise RuntimeError("operation failed due to a previous error during capture")
            self.end(0, pool)
            made.pool = pool
            self.stream = "caller's"
            self.log.append("ended")
            self.left -= self.takes

    @contextmanager
    def entered(self, *_: object) -> Iterator[None]:
        yield

    def work(self) -> tuple[Tensor, ...]:
        assert self.recording or self.mode == 2  # what waits raises before anything is recorded
        self.log.append("record" if self.recording else "warm up")
        return FOUND


class PlayedGraph:
    """Gives its pool back when it goes, if its recording had ended."""

    def __init__(self, device: Played) -> None:
        self.device, self.pool = device, None

    def replay(self) -> None:
        self.device.log.append("replay")

    def __del__(self) -> None:
        if self.pool is not None:
            self.device.release(0, self.pool)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Played:
    played = Played()
    parts: dict[str, Any] = {
        "Stream": lambda _device: played,
        "graph_pool_handle": played.pool,
        "device": played.entered,
        "stream": played.entered,
        "current_stream": lambda: played,
        "set_stream": lambda _stream: setattr(played, "stream", "caller's"),
        "CUDAGraph": lambda: PlayedGraph(played),
        "graph": played.graph,
        "default_generators": [played],
        "empty_cache": played.empty_cache,
        "mem_get_info": lambda _device: (played.left, played.total),
        "get_sync_debug_mode": lambda: played.mode,
        "set_sync_debug_mode": played.set_mode,
    }
    for name, part in parts.items():
        monkeypatch.setattr(torch.cuda, name, part)
    for name, part in (("end", played.end), ("release", played.release)):
        full = {"end": "_cuda_endAllocateToPool", "release": "_cuda_releasePool"}[name]
        monkeypatch.setattr(torch._C, full, part, raising=False)
    monkeypatch.setattr(torch.random, "fork_rng", played.entered)
    return played


def failing(device: Played) -> Callable[[], Any]:
    def work() -> Any:
        if device.recording:
            raise ValueError("not while recorded")
        return device.work()

    return work


class TestPlayed:
    def record(
        self, device: Played, work: Any, recorder: Any = None, *, limited: bool = True
    ) -> Any:
        recorder = recorder or CudaRecorder(torch.device("cuda", 0))
        try:
            return recorder.record(work, limited=limited)
        finally:
            assert (device.mode, device.stream, device.under_way) == (1, "caller's", [])

    def test_the_order(self, device: Played) -> None:
        replay, outputs = self.record(device, device.work)
        assert outputs is FOUND
        replay()
        assert device.log == ["wait", "warm up", "warm up", "wait", "record", "ended", "replay"]

    def test_a_wait_is_found_before_anything_is_recorded(self, device: Played) -> None:
        def waiting() -> Any:
            raise RuntimeError("called a synchronizing CUDA operation")

        with pytest.raises(RuntimeError, match="synchronizing"):
            self.record(device, waiting)
        assert device.log == ["wait", "wait"]

    def test_an_error_comes_after_the_recording_has_ended(self, device: Played) -> None:
        with pytest.raises(ValueError, match="not while recorded"):
            self.record(device, failing(device))
        assert device.log[-2:] == ["ended", "generator: state of before"]

    def test_a_recording_that_breaks(self, device: Played) -> None:
        """Stream, generator and allocator are put right, the reason is the first error, and the
        next recording is made in a pool of its own; earlier ones keep theirs."""
        recorder = CudaRecorder(torch.device("cuda", 0))
        earlier = self.record(device, device.work, recorder)
        device.end_fails = True
        for work, error in ((failing(device), ValueError), (device.work, RuntimeError)):
            with pytest.raises(error, match="not while recorded|previous error during capture"):
                self.record(device, work, recorder)
            assert device.log[-1] == "generator: state of before"
            device.empty_cache()
        device.end_fails = False
        later = self.record(device, device.work, recorder)
        gc.collect()
        assert device.uses == {(0, 1): 1, (0, 2): 0, (0, 3): 1} and earlier and later

    def test_memory_it_may_hold(self, device: Played) -> None:
        device.left, device.total, device.takes = 80 * 2**30, 100 * 2**30, 26 * 2**30
        with pytest.raises(RuntimeError, match=r"26.0 of 100.0 GiB .*cuda_graph=True allows it"):
            self.record(device, device.work)
        gc.collect()
        assert set(device.uses.values()) == {0}
        assert self.record(device, device.work, limited=False)[1] is FOUND
        device.takes = 24 * 2**30
        assert self.record(device, device.work)[1] is FOUND


OFF, AUTO, ON = (Engine(cuda_graph=mode) for mode in (False, "auto", True))


@pytest.fixture
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
    held = graph.recordings[model].values()
    return all(own.reason == "" for own in held) and any(own.replays for own in held)


def same(found: Tensor, plain: Tensor) -> bool:
    """Bit for bit, but for a few signs of a gradient near zero where a kernel adds in any order."""
    return bool((found != plain).float().mean() < 2e-3)


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


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.usefixtures("exact")
class TestOnADevice:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("name", SIZES)
    def test_replays_are_ordinary_passes(self, name: str, dtype: torch.dtype) -> None:
        """Through updates of the weights, for networks of all kinds."""
        model, side, attack = tiny(name).cuda(), SIZES[name], PGD(steps=3)
        for seed in range(5):
            with untouched(model):
                found = run(model, Engine(dtype=dtype), seed, side, attack)
            plain = run(model, Engine(dtype=dtype, cuda_graph=False), seed, side, attack)
            assert same(found, plain)
            change(model)
        assert recorded(model)

    @pytest.mark.parametrize(
        "attack",
        [
            PGD(steps=3, keep="best", momentum=0.9, eot=2),
            PGD(steps=3, keep="adversarial", restarts=2, eps=0.1),
            PGD(steps=2, norm="l1", eps=5.0, loss="kl"),
            APGD(steps=4, norm="l2", eps=0.5),
            FGSM(),
        ],
        ids=lambda a: f"{type(a).__name__}-{a.label}",
    )
    def test_attacks(self, attack: Attack) -> None:
        model = Mixed().cuda()
        for seed in range(3):
            assert same(run(model, ON, seed, 6, attack), run(model, OFF, seed, 6, attack))
        assert recorded(model)

    @pytest.mark.parametrize("method", [LoRA(rank=2), Adapter(reduction=4), Prompt(tokens=3)])
    def test_tuned_models(self, method: Any) -> None:
        model, attack = tiny(), PGD(steps=3)
        apply(model, method, seed=0)
        model.cuda()
        for seed in range(4):
            assert same(run(model, ON, seed, 8, attack), run(model, OFF, seed, 8, attack))
            change(model)
        assert recorded(model)

    @pytest.mark.parametrize("kind", [Waiting, Copying, Raising, Synchronizing])
    def test_a_failure_leaves_nothing_behind(
        self, kind: type[nn.Module], caplog: pytest.LogCaptureFixture
    ) -> None:
        """Stream, allocator, random state and later recordings are in order."""
        model, attack, stream = kind().cuda(), PGD(steps=2), torch.cuda.current_stream()
        torch.cuda.manual_seed(7)
        for seed in range(3):
            assert same(run(model, ON, seed, 6, attack), run(model, OFF, seed, 6, attack))
        told = [r for r in caplog.records if r.levelno == logging.WARNING]
        assert len(told) == 1 and "cannot be recorded" in told[0].getMessage()
        assert torch.cuda.current_stream() == stream
        assert not torch.cuda.is_current_stream_capturing()
        assert torch.cuda.get_sync_debug_mode() == 0
        drawn = torch.rand(5, device="cuda")
        torch.cuda.manual_seed(7)
        assert torch.equal(drawn, torch.rand(5, device="cuda"))
        torch.cuda.empty_cache()
        other = Mixed().cuda()
        for seed in range(3):
            assert same(run(other, ON, seed, 6, attack), run(other, OFF, seed, 6, attack))
        assert recorded(other)
        torch.cuda.synchronize()

    def test_recordings_that_take_much_memory(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(graph, "SHARE", -1.0)
        model, attack = Mixed().cuda(), PGD(steps=6)
        assert same(run(model, AUTO, 0, 6, attack), run(model, OFF, 0, 6, attack))
        assert "GiB of device memory (cuda_graph=True allows it)" in caplog.text
        forget(model)
        run(model, ON, 0, 6, attack)
        assert recorded(model)

    def test_memory_is_given_back(self) -> None:
        held = []
        for _ in range(3):
            model = Mixed().cuda()
            run(model, ON, 0, 6, PGD(steps=2))
            del model
            gc.collect()
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            held.append(torch.cuda.memory_allocated())
        assert held[0] >= held[1] >= held[2]

    @pytest.mark.filterwarnings("ignore")  # Inductor's, about TF32
    @pytest.mark.parametrize("asked", [True, "auto"])
    def test_a_compiled_model_is_recorded(self, asked: Any) -> None:
        model, attack = Mixed().cuda(), PGD(steps=2)
        on = replace(ON, compile=asked)
        for seed in range(3):
            found, plain = run(model, on, seed, 6, attack), run(model, OFF, seed, 6, attack)
            assert (found != plain).float().mean() < 0.05  # compiled kernels round differently
        assert recorded(model) and compiled.known[model].call is not compiled.as_it_is
        assert (compiled.known[model].quicker is None) is (asked is True)
