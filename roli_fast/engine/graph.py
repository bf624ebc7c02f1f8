"""Passes recorded once a shape and replayed: one launch instead of thousands of small ones.

On a GPU a small network is bound by the launches of its kernels. A CUDA graph repeats a recorded
sequence of them on the same memory. What is recorded is ONE pass, a forward with its input-backward
or a forward alone, so that every attack has it, also one that decides on the host between passes.
It has buffers of its own, into which images, labels and the loss's tensors are copied. Weights are
read where they lie: updated in place, as training does between batches, they are the new ones in
the next replay.
"""

import logging
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass, replace
from enum import Enum
from functools import cache
from types import FunctionType
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from roli_fast.errors import ArgumentError, describe
from roli_fast.losses import Loss

if TYPE_CHECKING:
    from roli_fast.engine.engine import Engine

logger = logging.getLogger("roli_fast.engine")

Work = Callable[[Tensor, Tensor, Loss, bool], tuple[Tensor, ...]]
"""One pass: images, labels, loss, and whether they have been checked -> new tensors, the logits
(B, C) last."""

RECORD_AT = 5
"""Of passes with one shape, the one that "auto" records. To record costs as much as some four
passes, which shapes that come but a few times, of a batch that images leave, would not earn back.
"""

RECORDINGS = 8
"""Of a model under an engine; the one unused longest goes."""

MOVES = 8
"""After so many passes in a row that left another model than they found, nothing is recorded."""

SHARE = 0.25
"""What a recording may hold of a device's memory where nobody asked for it by cuda_graph=True: the
larger the work, the less its launches matter and the more memory it takes from training."""

WARM_UPS = 2
NONE = "no CUDA graph for this model, it runs as it is"


class _Replay(NamedTuple):
    """A recorded pass: its own inputs, what repeats it, and the outputs that this overwrites."""

    inputs: Sequence[Tensor]
    replay: Callable[[], None]
    outputs: tuple[Tensor, ...]

    def __call__(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        with torch.inference_mode(False), torch.no_grad():
            for own, given in zip(self.inputs, inputs, strict=True):
                own.copy_(given)
            self.replay()
            return tuple(output.clone() for output in self.outputs)


@dataclass
class _Recordings:
    """What is recorded of one model under one engine, and why nothing more is.

    Args:
        state: of the model, as the recordings have it; see `model_state`.
        reason: why nothing is recorded, "" for no reason.
        moves: passes in a row that left another state than they found.
        passes: how often each shape came.
        replays: recordings by shape, the one unused longest first.
    """

    state: Hashable = None
    reason: str = ""
    moves: int = 0
    passes: Counter[Hashable] = field(default_factory=Counter)
    replays: dict[Hashable, _Replay] = field(default_factory=dict)

    def settle(self, state: Hashable) -> None:
        """Forget what was recorded of another state."""
        if state != self.state:
            self.state = state
            self.clear()

    def clear(self) -> bool:
        """Free the recordings; whether there were any."""
        found = bool(self.replays)
        self.passes.clear()
        self.replays.clear()
        return found


recordings: "WeakKeyDictionary[nn.Module, dict[Engine, _Recordings]]" = WeakKeyDictionary()
"""Kept as long as the model, and not in it: its copies and state dicts know nothing of it."""


class Replays:
    """Runs the passes of one attack on one model, replayed where they are recorded.

    Args:
        model: what is run, frozen for as long as this is used.
        engine: how passes are made. The pass that is recorded takes its result from an ordinary
            run, so a failure costs nothing but time.
        weights: the converted ones that passes read besides the model's own; another list once the
            model needed them in another form.
    """

    def __init__(
        self, model: object, engine: "Engine", weights: Callable[[], Sequence[Tensor]]
    ) -> None:
        self._model, self._engine, self._weights = model, engine, weights
        self._seen: Sequence[Tensor] | None = None

    def run(
        self, work: Work, x: Tensor, y: Tensor, loss: Loss, check: Callable[[int], None] | None
    ) -> tuple[Tensor, ...]:
        """`work(x, y, loss, check is None)`, from its recording where there is one.

        Args:
            work: a pass that brings no value to the host.
            x: images (B, ...).
            y: labels (B,).
            loss: a dataclass, whose tensors are inputs of the recording, or a function.
            check: called with the number of classes before a replay, for what an ordinary run
                checks in its first pass; None where that was done.

        Returns:
            New tensors: a replay's outputs are copied, as the next one overwrites them, and so are
            its inputs. For 64 images of 3 x 224 x 224 that moves 154 MB, 0.04 ms on an H200.
        """
        parts = self._recordable(x, loss)
        if parts is None:
            return work(x, y, loss, check is None)
        assert isinstance(self._model, nn.Module)
        own = recordings.setdefault(self._model, {}).setdefault(self._engine, _Recordings())
        if own.reason:
            return work(x, y, loss, check is None)
        if self._weights() is not self._seen:  # at first, and where the model asked for a view
            self._seen = self._weights()
            own.settle(model_state(self._model, self._seen)[0])
        inputs = (x, y, *parts.tensors)
        layouts = tuple((t.shape, t.stride(), t.dtype) for t in inputs)
        shape = (work.__name__, parts.rest, settings(x.device), layouts)
        recorded = own.replays.pop(shape, None)
        if recorded is not None:
            own.replays[shape] = recorded  # the last used
            if check is not None:
                check(recorded.outputs[-1].shape[1])
            return recorded(inputs)
        found = work(x, y, loss, check is None)  # makes the checks, loads what the device needs
        own.passes[shape] += 1
        if own.passes[shape] >= (1 if self._engine.cuda_graph is True else RECORD_AT):
            try:
                self._record(own, shape, work, inputs, parts.joined)
            except Exception as error:  # whatever it is, the result is there
                own.clear()
                own.reason = f"its passes cannot be recorded: {first_line(error)}"
                say_once(self._model, f"{NONE}: {own.reason}")
        return found

    def _recordable(self, x: Tensor, loss: Loss) -> "_Parts | None":
        """What the loss is made of; None where nothing is to be recorded."""
        parts = _taken_apart(loss)
        if x.device.type in RECORDERS and isinstance(self._model, nn.Module) and parts:
            return parts if len(x) else None
        if self._engine.cuda_graph is True:
            wanted = "images on a GPU, an nn.Module and a loss without a closure"
            say_once(self._model, f"cuda_graph=True: {NONE}: it takes {wanted}")
        return None

    def _record(
        self,
        own: _Recordings,
        shape: Hashable,
        work: Work,
        inputs: Sequence[Tensor],
        joined: Callable[[Sequence[Tensor]], Loss],
    ) -> None:
        assert isinstance(self._model, nn.Module)
        device = inputs[0].device
        state, tensors = model_state(self._model, self._weights())
        if state != own.state:  # by this very pass: it keeps its logits, or asked for a view
            own.settle(state)
            own.moves += 1
            if own.moves >= MOVES:
                raise RuntimeError("each leaves other tensors or attributes in the model")
            return
        for tensor in tensors:  # a number from elsewhere would be recorded as it is
            if tensor.device != device:
                raise ArgumentError(describe("model", f"all tensors on {device}", tensor.device))
        if len(own.replays) >= RECORDINGS:
            del own.replays[next(iter(own.replays))]
        with torch.inference_mode(False), torch.no_grad():
            buffers = [tensor.detach().clone() for tensor in inputs]
            x, y, *rest = buffers
            replay, outputs = RECORDERS[device.type](device).record(
                lambda: work(x, y, joined(rest), True), limited=self._engine.cuda_graph == "auto"
            )
        own.replays[shape], own.moves = _Replay(buffers, replay, outputs), 0


def free_recordings() -> bool:
    """Free the memory of all models' recordings; whether there were any."""
    return any([own.clear() for held in list(recordings.values()) for own in held.values()])


class _Parts(NamedTuple):
    """A loss: its tensors, all else that it depends on, and what makes it of other tensors."""

    tensors: tuple[Tensor, ...]
    rest: Hashable
    joined: Callable[[Sequence[Tensor]], Loss]


def _taken_apart(loss: Loss) -> _Parts | None:
    """None of a loss that may depend on more than is seen."""
    if isinstance(loss, FunctionType):
        return None if loss.__closure__ else _Parts((), loss, lambda _: loss)
    if not is_dataclass(loss):
        return None
    values: dict[str, Any] = {f.name: getattr(loss, f.name) for f in fields(loss)}
    own = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    rest = tuple((name, value) for name, value in values.items() if name not in own)
    if any(callable(value) for _, value in rest if not is_dataclass(value)):
        return None
    try:
        hash(rest)
    except TypeError:
        return None

    def joined(tensors: Sequence[Tensor]) -> Any:
        return replace(loss, **dict(zip(own, tensors, strict=True)))  # type: ignore[type-var]

    return _Parts(tuple(own.values()), (type(loss), tuple(own), rest), joined)


_USUAL = frozenset(vars(nn.Module())) - {"training"}
"""What every module has: its tables are read by name."""


def model_state(
    model: nn.Module, converted: Sequence[Tensor] = ()
) -> tuple[tuple[Hashable, Hashable], list[Tensor]]:
    """All that a recorded pass depends on besides its inputs: modules, hooks, numbers, words and
    functions, by which a forward may choose its way, and where the tensors lie that it reads:
    parameters, buffers and attributes, also those in lists. And these tensors."""
    values: list[Hashable] = []
    tensors = list(converted)
    for module in model.modules():
        held = vars(module)
        values += (id(module), type(module), *module._forward_hooks, *module._forward_pre_hooks)
        tensors += (t for t in module._parameters.values() if t is not None)
        tensors += (t for t in module._buffers.values() if t is not None)
        for key in [key for key in held if key not in _USUAL]:
            value = held[key]
            if value is None or isinstance(value, (bool, int, float, str, Enum)):
                values += (key, value)
            elif callable(value) and not isinstance(value, (nn.Module, Tensor)):
                function = getattr(value, "__func__", value)
                values += (key, id(function), getattr(function, "__code__", None))  # ids come again
            else:
                tensors += _tensors_in(value)
    places = tuple((t.data_ptr(), t.shape, t.stride(), t.dtype) for t in tensors)
    return (tuple(values), places), tensors


def _tensors_in(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, nn.Module):  # that is not registered
        yield from (*value.parameters(), *value.buffers())
    elif isinstance(value, (dict, list, tuple)):
        for held in value.values() if isinstance(value, dict) else value:
            yield from _tensors_in(held)


def settings(device: torch.device) -> Hashable:
    """What is set in torch that passes depend on."""
    kind, cuda, cudnn = device.type, torch.backends.cuda, torch.backends.cudnn
    return (
        torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None,
        torch.are_deterministic_algorithms_enabled(),
        cudnn.deterministic,
        _tf32(cuda.matmul),
        _tf32(getattr(cudnn, "conv", cudnn)),
        cuda.flash_sdp_enabled(),
        cuda.mem_efficient_sdp_enabled(),
        cuda.math_sdp_enabled(),
        cuda.cudnn_sdp_enabled(),
    )


def _tf32(backend: Any) -> object:
    """By the name of torch >= 2.9: asked by the old one it raises once that was set."""
    try:
        return backend.fp32_precision
    except AttributeError:
        return backend.allow_tf32


_said: "WeakKeyDictionary[object, set[str]]" = WeakKeyDictionary()


def say_once(model: object, text: str, level: int = logging.WARNING) -> None:
    """Log why a model runs as it is though more was asked for, once a model; of a callable that
    cannot be referred to weakly every time."""
    try:
        said = _said.setdefault(model, set())
    except TypeError:
        said = set()
    if text not in said:
        said.add(text)
        logger.log(level, "%s", text)


def first_line(error: BaseException) -> str:
    """The error's type and the first line of its text."""
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])


class CudaRecorder:
    """Records work on one CUDA device, all on one stream and in one pool of memory.

    Recordings may share it because each replay begins with its inputs, which lie outside, and ends
    with its outputs, which stay reserved: nothing else has to outlast a replay.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._begin()

    def _begin(self) -> None:
        self._stream = torch.cuda.Stream(self._device)
        self._pool: Any = torch.cuda.graph_pool_handle()

    @staticmethod
    @cache
    def on(device: torch.device) -> "CudaRecorder":
        """The recorder of a device."""
        return CudaRecorder(device)

    def record(
        self, work: Callable[[], tuple[Tensor, ...]], *, limited: bool
    ) -> tuple[Callable[[], None], tuple[Tensor, ...]]:
        """Run `work`, and record it without effect on random states.

        Args:
            work: a pass, which waits for nothing.
            limited: give up where the recording holds a large part of the device's memory.

        Returns:
            What repeats it, and its outputs, which each replay overwrites.

        Raises:
            Exception: what `work` raises; RuntimeError where it waits for the device, does what a
                graph cannot hold, or takes too much memory.
        """
        device = self._device
        with torch.cuda.device(device), torch.random.fork_rng([device]):
            self._warm_up(work)
            torch.cuda.empty_cache()
            before, total = torch.cuda.mem_get_info(device)
            graph, outputs = self._capture(work)
            held = before - torch.cuda.mem_get_info(device)[0]
            if limited and held > SHARE * total:
                del graph, outputs
                torch.cuda.empty_cache()
                size = f"{held / 2**30:.1f} of {total / 2**30:.1f} GiB"
                fix = "(cuda_graph=True allows it)"
                raise RuntimeError(f"it would hold {size} of device memory {fix}")
        return graph.replay, outputs

    def _warm_up(self, work: Callable[[], tuple[Tensor, ...]]) -> None:
        """On the stream of the recording, where libraries set up their handles and workspaces.

        A model that waits for the device is found here, where nothing has to be undone.
        """
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream), _raising_waits():
                for _ in range(WARM_UPS):
                    work()
        finally:
            current.wait_stream(self._stream)

    def _capture(
        self, work: Callable[[], tuple[Tensor, ...]]
    ) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...]]:
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        generator = torch.cuda.default_generators[self._device.index]
        state = generator.clone_state()
        mode = "thread_local"  # loader threads may go on with what a recording thread may not do
        try:
            with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode=mode):
                outputs = work()
        except Exception as error:
            # where the recording itself broke, torch leaves its stream current and the generator
            # believing that it is recorded; a state of its own replaces that
            torch.cuda.set_stream(current)
            generator.graphsafe_set_state(state)
            self._give_up_the_pool()
            first = error.__context__  # what `work` raised, of which the recording broke
            raise (first if isinstance(first, Exception) else error) from None
        return graph, outputs

    def _give_up_the_pool(self) -> None:
        """A recording that breaks as it ends leaves the allocator in it: nothing more could be
        recorded into this pool, and no cache emptied. What torch does at its end is done here."""
        try:
            torch._C._cuda_endAllocateToPool(self._device.index, self._pool)
        except RuntimeError:  # torch did so, or it never began
            pass
        else:
            torch._C._cuda_releasePool(self._device.index, self._pool)
        self._begin()


@contextmanager
def _raising_waits() -> Iterator[None]:
    """Inside, what waits for the device raises before it does, whatever the caller has set."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls the mode a prototype, once, when it is set
        try:
            torch.cuda.set_sync_debug_mode("error")
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)


RECORDERS: dict[str, Callable[[torch.device], Any]] = {"cuda": CudaRecorder.on}
"""Device type -> the `CudaRecorder` of a device, or what a test has in its place."""
