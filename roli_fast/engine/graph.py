"""A loop of passes recorded once and replayed: one launch instead of thousands of small ones.

On a GPU a small network is bound by the launches of its kernels. A CUDA graph repeats a recorded
sequence of them on the same memory, so a loop that takes no decision on the host is recorded with
buffers of its own, into which each batch is copied. Weights are read where they lie: updated in
place, between batches as training does, they are the new ones in the next replay.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from roli_fast.engine.cost import Cost
from roli_fast.engine.cuda_recorder import CudaRecorder
from roli_fast.engine.look import Look, check_devices, places_of
from roli_fast.engine.reasons import first_line, say_once
from roli_fast.engine.second_weights import forget_second_weights

logger = logging.getLogger("roli_fast.engine")

Mode = Literal["auto"] | bool

SLOTS = 8
"""Loops of one model that are remembered, by attack and shape; the one unused longest goes."""

NONE = "no CUDA graph for this model, it runs as it is"

MOVES = 3
"""After so many calls in a row that each found another model, recording is given up."""


class Recorder(Protocol):
    """What records on one device; the CPU's tests have their own."""

    def record(
        self, work: Callable[[], Tensor], *, limited: bool
    ) -> tuple[Callable[[], None], Tensor]:
        """Run `work` without effect on random states, and return what repeats it, and its output.

        `limited` gives up where the recording holds a large part of the device's memory.
        Any exception says why it cannot be recorded, and leaves the device as it was.
        """
        ...


RECORDERS: dict[str, Callable[[torch.device], Recorder]] = {"cuda": CudaRecorder.on}
"""Device type -> the recorder of a device."""


class Loop(NamedTuple):
    """What is run or replayed.

    Args:
        key: all that it depends on besides tensors: attack, options, what is set in torch.
        inputs: its tensors; it may change the first in place.
        work: (*inputs) -> the result, passes and other operations without a look at the device.
    """

    key: Hashable
    inputs: Sequence[Tensor]
    work: Callable[..., Tensor]


class Meter(Protocol):
    """What counts passes, and knows the number of classes once one was made."""

    classes: int

    @property
    def cost(self) -> Cost:
        """Passes so far; it can be set."""
        ...

    @cost.setter
    def cost(self, cost: Cost) -> None: ...


class _Recording(NamedTuple):
    inputs: list[Tensor]
    output: Tensor
    replay: Callable[[], None]
    cost: Cost
    classes: int


@dataclass
class _Slot:
    """One loop: where its model's tensors lay at the last call, and its recording."""

    places: Hashable
    recording: _Recording | None = None
    moves: int = 0


class LoopGraphs:
    """The recordings of one model, and why there are no more of them."""

    def __init__(self) -> None:
        self._slots: OrderedDict[Hashable, _Slot] = OrderedDict()
        self.reason = ""

    def run(
        self,
        mode: Mode,
        loop: Loop,
        look: Look,
        meter: Meter,
        check: Callable[[int], None],
    ) -> Tensor:
        """The result of the loop, replayed if it is recorded.

        Args:
            mode: "auto" records at the second call with the same key, shapes and places of the
                weights, True at the first. The call that records takes its result from an
                ordinary run, so a failure costs nothing but time.
            loop: what to run.
            look: what its passes depend on.
            meter: to which a replay adds the passes that it stands for.
            check: called before a replay with the number of classes, for what an ordinary run would
                check in its first pass.
        """
        slot, due = self._slot(mode, loop, look)
        if slot.recording is not None:
            check(slot.recording.classes)
            return _replay(slot.recording, loop.inputs, meter)
        if not due:
            return loop.work(*loop.inputs)
        with torch.inference_mode(False), torch.no_grad():
            inputs = [_copy(tensor) for tensor in loop.inputs]
        before = meter.cost
        found = loop.work(*loop.inputs)  # makes the checks, and loads what the device needs
        after = meter.cost
        try:
            check_devices(look.tensors, found.device)
            recorder = RECORDERS[found.device.type](found.device)
            with torch.inference_mode(False), torch.no_grad():
                replay, output = recorder.record(lambda: loop.work(*inputs), limited=mode == "auto")
            slot.recording = _Recording(inputs, output, replay, after - before, meter.classes)
        except Exception as error:  # whatever it is, the result is there
            self._refuse(f"its loop cannot be recorded: {first_line(error)}")
        finally:
            meter.cost = after
        return found

    def _slot(self, mode: Mode, loop: Loop, look: Look) -> tuple[_Slot, bool]:
        """The loop's slot, and whether this call is to record."""
        if self.reason:
            return _Slot(()), False
        key, places = _key(loop), places_of(look)
        slot = self._slots.get(key)
        if slot is None:
            slot = self._slots[key] = _Slot(places)
            if len(self._slots) > SLOTS:
                self._slots.popitem(last=False)
            return slot, mode is True
        self._slots.move_to_end(key)
        if slot.places == places:
            slot.moves = 0
            return slot, True
        slot.places, slot.recording, slot.moves = places, None, slot.moves + 1
        if slot.moves >= MOVES:
            self._refuse("its tensors or attributes are others at every call")
            return _Slot(()), False
        return slot, mode is True

    def _refuse(self, reason: str) -> None:
        self.reason = reason
        self._slots.clear()
        logger.warning("%s: %s", NONE, reason)


_graphs: "WeakKeyDictionary[nn.Module, LoopGraphs]" = WeakKeyDictionary()
"""Kept as long as the model, and not in it: its copies and state dicts know nothing of it."""


def graphs_of(model: nn.Module) -> LoopGraphs:
    """The model's recordings."""
    return _graphs.setdefault(model, LoopGraphs())


def forget_graphs(model: nn.Module) -> None:
    """Free the recordings of a model and the converted weights that they read."""
    _graphs.pop(model, None)
    forget_second_weights(model)


def excluded(mode: Mode, model: object, device: torch.device | None, without: str = "") -> bool:
    """Whether nothing is to be recorded; with True the reason is logged, once a model.

    Args:
        mode: what was asked for.
        model: what is run.
        device: where the images are; None where that plays no part any more.
        without: what of the attack needs decisions on the host, "" for nothing.
    """
    if mode is False:
        return True
    if device is not None and device.type not in RECORDERS:
        without = f"the images are on {device}"
    elif not isinstance(model, nn.Module):
        without = "it is no nn.Module, so nobody knows where its weights are"
    if without and mode is True:
        say_once(model, f"cuda_graph=True: {NONE}: {without}")
    return bool(without)


def records(model: object) -> bool:
    """Whether a model is one whose loops may be recorded: a module on such a device."""
    return isinstance(model, nn.Module) and any(
        parameter.device.type in RECORDERS for parameter in model.parameters()
    )


def _replay(recording: _Recording, inputs: Sequence[Tensor], meter: Meter) -> Tensor:
    with torch.no_grad():
        for own, given in zip(recording.inputs, inputs, strict=True):
            own.copy_(given)
        recording.replay()
        meter.cost, meter.classes = meter.cost + recording.cost, recording.classes
        return recording.output.clone()


def _key(loop: Loop) -> Hashable:
    return loop.key, tuple((t.shape, t.stride(), t.dtype, t.device) for t in loop.inputs)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()
