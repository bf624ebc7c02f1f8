"""Finds `roli_fast._C`, says which kernels can be used and why, and calls them.

The only importer of `_C`. Nothing here checks arguments: a caller has done so.

ROLI_FAST_BACKEND=native (default) uses a kernel wherever there is one, =reference never does.
ROLI_FAST_REQUIRE_EXT=1 makes a kernel that should exist and does not an error.
"""

import importlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple

import torch  # before _C, so that both share one OpenMP runtime
from torch import Tensor

from roli_fast.errors import ArgumentError, RoliFastError, describe
from roli_fast.files import read_json

logger = logging.getLogger("roli_fast")

INTERFACE = 6  # raise together with kInterface in csrc/bindings.cpp
BACKENDS = ("native", "reference")
_NATIVE = (torch.float32, torch.bfloat16, torch.float16)
OPS = {
    "linf_step_": _NATIVE,
    "l2_project_": _NATIVE,
    "l2_step_": _NATIVE,
    "apgd_linf_step_": _NATIVE,
    "apgd_l2_step_": _NATIVE,
    "fab_linf_step_": _NATIVE,
    "fab_l2_step_": _NATIVE,
    "fab_l1_step_": _NATIVE,
    "select_best_": (*_NATIVE, torch.float64),
    "l1_step_": _NATIVE,
    "l1_project_": _NATIVE,
    "linf_random_start": _NATIVE,
    "l2_random_start": _NATIVE,
    "l1_random_start": _NATIVE,
    "lora_linear": (*_NATIVE, torch.float64),
    "lora_merge_": _NATIVE,
}
"""Every op with kernels, and the dtypes that they cover, on the CPU and on CUDA."""

_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}


class MissingKernelError(RoliFastError, RuntimeError):
    """ROLI_FAST_REQUIRE_EXT is set and a kernel that should exist cannot be used."""


class Backend(NamedTuple):
    """Which implementation an op takes, and why."""

    name: Literal["native", "reference"]
    reason: str


class _State:
    """What is found at import and what the process learns later."""

    def __init__(self) -> None:
        self.chosen = _chosen_backend()
        self.required = os.environ.get("ROLI_FAST_REQUIRE_EXT", "") not in ("", "0")
        self.forked = False
        self.cuda_obstacles: dict[int, str] = {}
        self.record = build_record()
        self.module, self.obstacle = _load(self.record)
        self.has_cuda = self.module is not None and hasattr(self.module, "linf_step_cuda")


def _chosen_backend() -> str:
    chosen = os.environ.get("ROLI_FAST_BACKEND", "") or "native"
    if chosen not in BACKENDS:
        raise ArgumentError(describe("ROLI_FAST_BACKEND", " or ".join(BACKENDS), repr(chosen)))
    return chosen


def build_record() -> dict[str, Any]:
    """What the installation noted in `_build.json`; empty if it never ran here."""
    path = Path(__file__).parent.parent / "_build.json"
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _load(record: dict[str, Any]) -> tuple[ModuleType | None, str]:
    """The module, or None and the reason. A build that failed is logged either way."""
    reasons = "; ".join(record.get("reasons", [])) or "never built here: run pip install"
    try:
        module = importlib.import_module("roli_fast._C")
    except ImportError as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name == "roli_fast._C"
        reason = reasons if absent else f"_C does not load: {error}"
        if record.get("requested") != "none":
            _tell(f"no compiled kernels: {reason}")
        return None, reason
    found = module.build_info()["interface"]
    if found != INTERFACE:
        reason = f"_C is of another version ({found}, expected {INTERFACE}): install again"
        _tell(f"no compiled kernels: {reason}")
        return None, reason
    if record.get("failed"):
        _tell(f"some kernels are missing: {reasons}")
    return module, ""


def _tell(message: str) -> None:
    logger.warning("%s (python -m roli_fast.doctor tells more)", message)


_state = _State()
_used: ContextVar[str] = ContextVar("used_backend")


def _note_fork() -> None:
    _state.forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


def build_info() -> dict[str, Any]:
    """What `_C` says of itself (compiler, flags, CPU level, OpenMP, CUDA); empty without it."""
    return dict(_state.module.build_info()) if _state.module else {}


def obstacle() -> str:
    """Why there is no `_C`; "" if there is one."""
    return _state.obstacle


def required() -> bool:
    """Whether ROLI_FAST_REQUIRE_EXT is set."""
    return _state.required


def module_file() -> str:
    """Where `_C` was loaded from; "" without it."""
    return str(_state.module.__file__) if _state.module else ""


def cuda_driver_version() -> int:
    """The newest CUDA that the driver knows, 13000 for 13.0; 0 without driver or CUDA kernels."""
    return _state.module.cuda_driver_version() if _state.module and _state.has_cuda else 0


@contextmanager
def use_backend(name: Literal["native", "reference"]) -> Iterator[None]:
    """Take `name` for every op in this block, in this thread alone. Raises `ArgumentError`."""
    if name not in BACKENDS:
        raise ArgumentError(describe("name", " or ".join(BACKENDS), repr(name)))
    token = _used.set(name)
    try:
        yield
    finally:
        _used.reset(token)


def watched() -> bool:
    """Whether someone compiles, traces or changes torch's operators: no kernel would be seen."""
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._is_tracing()
    )


def backend(op: str, device: torch.device | str, dtype: torch.dtype) -> Backend:
    """Which implementation `op` takes for plain tensors of `dtype` on `device`, and why.

    Asking about a CUDA device loads the kernels there. Raises `ArgumentError` for an unknown op.
    """
    if op not in OPS:
        raise ArgumentError(describe("op", f"one of: {', '.join(OPS)}", repr(op)))
    place = torch.device(device)
    if _used.get(_state.chosen) == "reference":
        return Backend("reference", "the reference was asked for")
    if place.type not in ("cpu", "cuda"):
        return Backend("reference", f"there are no kernels for {place.type}")
    if dtype not in OPS[op]:
        return Backend("reference", f"there is no kernel for {dtype}")
    missing = _missing(place)
    return Backend("reference", missing) if missing else Backend("native", "")


def _missing(device: torch.device) -> str:
    """Why a kernel that should exist for `device` cannot be used; "" if it can."""
    if _state.module is None:
        return _state.obstacle
    if device.type == "cpu":
        return ""
    if not _state.has_cuda:
        reasons = "; ".join(_state.record.get("reasons", []))
        return f"_C was built without CUDA ({reasons})" if reasons else "_C was built without CUDA"
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    index = torch.cuda.current_device() if device.index is None else device.index
    if index not in _state.cuda_obstacles:
        reason = _state.module.cuda_obstacle(index)
        _state.cuda_obstacles[index] = reason
        if reason:
            _tell(f"no kernels on cuda:{index}: {reason}")
    return _state.cuda_obstacles[index]


def usable(op: str, tensor: Tensor) -> bool:
    """Whether `op` has a kernel for this tensor's device and dtype, and nobody looks on.

    Raises `MissingKernelError`.
    """
    if _used.get(_state.chosen) == "reference" or tensor.dtype not in OPS[op] or watched():
        return False
    if tensor.is_cpu:
        missing = _state.obstacle
    elif tensor.is_cuda:
        missing = _missing(tensor.device)
    else:
        return False
    if missing and _state.required:
        raise MissingKernelError(f"{op}: ROLI_FAST_REQUIRE_EXT is set and {missing}.")
    return not missing


def run(kernel: str, like: Tensor, *arguments: object) -> None:
    """Call `kernel` where `like` lies: on its device, in its current stream."""
    module: Any = _state.module
    if like.is_cuda:
        stream = torch.cuda.current_stream(like.device).cuda_stream
        getattr(module, kernel + "_cuda")(*arguments, like.get_device(), stream)
    else:
        # A forked child has lost the thread pool and would wait for it for ever.
        threads = 1 if _state.forked else torch.get_num_threads()
        getattr(module, kernel)(*arguments, threads)


def reduction_workspace(samples: int, per_sample: int) -> int:
    """How many fp64 numbers a CUDA kernel with sums needs to work on (samples, per_sample)."""
    module: Any = _state.module
    return module.reduction_workspace(samples, per_sample)


def lora_workspace(tokens: int, inputs: int, outputs: int, rank: int) -> int:
    """How many fp32 numbers the CUDA kernel of lora_linear's backward pass needs."""
    module: Any = _state.module
    return module.lora_backward_workspace(tokens, inputs, outputs, rank)


def code(dtype: torch.dtype) -> int:
    """A dtype as the bindings take it; fp64 only where an op says so."""
    return _CODES[dtype]


def size(tensor: Tensor) -> tuple[int, int, int]:
    """(samples, elements, dtype code) as the bindings take them."""
    return tensor.shape[0], tensor.numel(), _CODES[tensor.dtype]


def amounts(*values: float | Tensor) -> list[tuple[int, float, int]]:
    """Each as (address or 0, value, stride over the samples).

    A tensor must be contiguous fp32 of shape (B,) or (1,) and outlive the kernel's launch.
    """
    return [
        (0, value, 0)
        if isinstance(value, (float, int))
        else (value.data_ptr(), 0.0, int(value.numel() > 1))
        for value in values
    ]
