"""Records work on one CUDA device. All that needs a GPU about graphs is here."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor

SHARE = 0.25
"""What recordings may hold of a device's memory where nobody asked for them by cuda_graph=True:
the larger the work, the less its launches matter and the more memory it takes from training."""

WARM_UPS = 2


class CudaRecorder:
    """All recordings of a device are made on one stream and share their memory.

    They may share it because each replay begins with its inputs, which lie outside, and ends with
    its output, which stays reserved: nothing else has to outlast a replay.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool: Any = torch.cuda.graph_pool_handle()

    @staticmethod
    @cache
    def on(device: torch.device) -> "CudaRecorder":
        """The recorder of a device."""
        return CudaRecorder(device)

    def record(
        self, work: Callable[[], Tensor], *, limited: bool
    ) -> tuple[Callable[[], None], Tensor]:
        """As `graph.Recorder`.

        Raises:
            Exception: what `work` raises; RuntimeError where it waits for the device, does what a
                graph cannot hold, or takes too much memory.
        """
        device = self._device
        with (
            torch.cuda.device(device),
            torch.random.fork_rng([device]),
            _waiting("default"),
        ):
            self._warm_up(work)
            torch.cuda.empty_cache()
            before, total = torch.cuda.mem_get_info(device)
            graph, output = self._capture(work)
            held = before - torch.cuda.mem_get_info(device)[0]
        if limited and held > SHARE * total:
            del graph, output
            torch.cuda.empty_cache()
            size = f"{held / 2**30:.1f} of {total / 2**30:.1f} GiB"
            raise RuntimeError(f"it would hold {size} of device memory (cuda_graph=True allows it)")
        return graph.replay, output

    def _warm_up(self, work: Callable[[], Tensor]) -> None:
        """On the stream of the recording, where libraries set up their handles and workspaces.

        A model that waits for the device is found here, where nothing has to be undone.
        """
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream), _waiting("error"):
                for _ in range(WARM_UPS):
                    work()
        finally:
            current.wait_stream(self._stream)

    def _capture(self, work: Callable[[], Tensor]) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """An exception of `work` is held back until the recording has ended in order: raised from
        within, it would leave the stream, the allocator and the random state as if it went on."""
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        generator = torch.cuda.default_generators[self._device.index]
        state = generator.clone_state()
        output: Tensor | None = None
        problems: list[Exception] = []  # emptied: a frame that holds its own error is not freed
        try:
            # thread_local: loader threads may go on with what a recording thread may not do
            with (
                torch.cuda.graph(
                    graph, self._pool, self._stream, capture_error_mode="thread_local"
                ),
                _waiting("error"),
            ):
                try:
                    output = work()
                except Exception as error:  # raised below
                    problems.append(error)
        except Exception as error:
            # the recording itself broke: torch leaves its stream current, and may leave the
            # generator believing that it is recorded; a state of its own replaces that
            generator.graphsafe_set_state(state)
            raise problems.pop() if problems else error from None
        finally:
            torch.cuda.set_stream(current)
        if problems:
            raise problems.pop()
        assert output is not None
        return graph, output


@contextmanager
def _waiting(mode: str) -> Iterator[None]:
    """Inside, what waits for the device may do so ("default"), or raises before it does ("error"),
    whatever the caller has set."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls the mode a prototype
        torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
