"""In which order a recording is made on a device, and what is put right where it fails.

torch.cuda's parts are played here; test_cuda_recorder.py asks a real device.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from roli_fast.engine import cuda_recorder
from roli_fast.engine.cuda_recorder import CudaRecorder

FOUND = torch.ones(1)


class Played:
    """A device that writes down what is asked of it."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.mode = 1  # what the caller has set: "warn"
        self.stream = "caller's"
        self.end_fails = False
        self.left, self.total = [80, 70], 100
        self.recording = False

    def clone_state(self) -> str:
        return "state of before"

    def graphsafe_set_state(self, state: str) -> None:
        self.log.append(f"generator: {state}")

    def replay(self) -> None:
        self.log.append("replay")

    def wait_stream(self, _other: object) -> None:
        self.log.append("wait")

    @contextmanager
    def graph(self, *_: Any, capture_error_mode: str) -> Iterator[None]:
        assert (capture_error_mode, self.mode) == ("thread_local", 0)
        self.stream, self.recording = "recording's", True
        yield
        self.recording = False
        assert self.mode == 0
        if self.end_fails:  # as torch does: its stream stays current
            raise RuntimeError("operation failed due to a previous error during capture")
        self.stream = "caller's"
        self.log.append("ended")

    @contextmanager
    def entered(self, *_: object) -> Iterator[None]:
        yield

    def work(self) -> Tensor:
        assert self.mode == 2  # what waits raises
        self.log.append("record" if self.recording else "warm up")
        return FOUND


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Played:
    played = Played()
    modes = {"default": 0, "warn": 1, "error": 2}
    parts: dict[str, Any] = {
        "Stream": lambda _device: played,
        "graph_pool_handle": lambda: (0, 1),
        "device": played.entered,
        "stream": played.entered,
        "current_stream": lambda: played,
        "set_stream": lambda _stream: setattr(played, "stream", "caller's"),
        "CUDAGraph": lambda: played,
        "graph": played.graph,
        "default_generators": [played],
        "empty_cache": lambda: None,
        "mem_get_info": lambda _device: (played.left.pop(0), played.total),
        "get_sync_debug_mode": lambda: played.mode,
        "set_sync_debug_mode": lambda mode: setattr(played, "mode", modes.get(mode, mode)),
    }
    for name, part in parts.items():
        monkeypatch.setattr(torch.cuda, name, part)
    monkeypatch.setattr(torch.random, "fork_rng", played.entered)
    return played


def record(device: Played, work: Callable[[], Tensor], *, limited: bool = True) -> Any:
    try:
        return CudaRecorder(torch.device("cuda", 0)).record(work, limited=limited)
    finally:
        assert (device.mode, device.stream) == (1, "caller's")


def test_the_order(device: Played) -> None:
    replay, output = record(device, device.work)
    assert output is FOUND
    replay()
    assert device.log == ["wait", "warm up", "warm up", "wait", "record", "ended", "replay"]


def test_a_wait_is_found_before_anything_is_recorded(device: Played) -> None:
    def waiting() -> Tensor:
        raise RuntimeError("called a synchronizing CUDA operation")

    with pytest.raises(RuntimeError, match="synchronizing"):
        record(device, waiting)
    assert device.log == ["wait", "wait"]


def failing(device: Played) -> Callable[[], Tensor]:
    def work() -> Tensor:
        if device.recording:
            raise ValueError("not while recorded")
        return device.work()

    return work


def test_an_error_comes_after_the_recording_has_ended(device: Played) -> None:
    with pytest.raises(ValueError, match="not while recorded"):
        record(device, failing(device))
    assert device.log[-1] == "ended"


def test_a_recording_that_breaks(device: Played) -> None:
    """Stream and generator are put right, and the reason is the first error."""
    device.end_fails = True
    with pytest.raises(ValueError, match="not while recorded"):
        record(device, failing(device))
    assert device.log[-1] == "generator: state of before"
    device.left = [80, 70]
    with pytest.raises(RuntimeError, match="previous error during capture"):
        record(device, device.work)
    assert device.log[-1] == "generator: state of before"


def test_memory_it_may_hold(device: Played) -> None:
    device.left, device.total = [80 * 2**30, 54 * 2**30], 100 * 2**30
    with pytest.raises(RuntimeError, match=r"hold 26.0 of 100.0 GiB .*cuda_graph=True allows it"):
        record(device, device.work)
    device.left = [80 * 2**30, 54 * 2**30]
    assert record(device, device.work, limited=False)[1] is FOUND
    device.left = [80 * 2**30, 56 * 2**30]
    assert record(device, device.work)[1] is FOUND
    assert cuda_recorder.SHARE == 0.25
