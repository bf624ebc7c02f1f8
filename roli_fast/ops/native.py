"""Finds `roli_fast._C`, says which kernels can be used and why, and calls them.

The only importer of `_C`. Nothing here checks arguments: a caller has done so.

ROLI_FAST_BACKEND=native (default) uses a kernel wherever there is one, =reference never does.
ROLI_FAST_REQUIRE_EXT=1 makes a kernel that should exist and does not an error.
"""

import importlib
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch  # before _C, so that both share one OpenMP runtime
from torch import Tensor
from torch.autograd import forward_ad

from roli_fast.errors import ArgumentError, RoliFastError, describe
from roli_fast.files import read_json

logger = logging.getLogger("roli_fast")

INTERFACE = 7  # raise together with kInterface in csrc/bindings.cpp
BACKENDS = ("native", "reference")
_NATIVE = (torch.float32, torch.bfloat16, torch.float16)
_UPDATES = ("linf_step_", "l2_step_", "l1_step_", "l2_project_", "l1_project_", "apgd_linf_step_")
_UPDATES += ("apgd_l2_step_", "fab_linf_step_", "fab_l2_step_", "fab_l1_step_")
_STARTS = ("linf_random_start", "l2_random_start", "l1_random_start")
OPS = {
    **dict.fromkeys((*_UPDATES, *_STARTS, "lora_merge_"), _NATIVE),
    **dict.fromkeys(("select_best_", "lora_linear"), (*_NATIVE, torch.float64)),
}
"""Every op with kernels, and the dtypes that they cover, on the CPU and on CUDA."""

CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}
"""Dtypes as the bindings take them; fp64 only where an op says so."""


class MissingKernelError(RoliFastError, RuntimeError):
    """ROLI_FAST_REQUIRE_EXT is set and a kernel that should exist cannot be used."""


class Backend(NamedTuple):
    """Which implementation an op takes, and why."""

    name: Literal["native", "reference"]
    reason: str


class _State:
    """What is found at import and what the process learns later."""

    def __init__(self) -> None:
        self.chosen = os.environ.get("ROLI_FAST_BACKEND", "") or "native"
        if self.chosen not in BACKENDS:
            expected = " or ".join(BACKENDS)
            raise ArgumentError(describe("ROLI_FAST_BACKEND", expected, repr(self.chosen)))
        self.required = os.environ.get("ROLI_FAST_REQUIRE_EXT", "") not in ("", "0")
        self.forked = False
        self.cuda_obstacles: dict[int, str] = {}
        self.record = _build_record()
        self.module, self.obstacle = _load(self.record)
        self.has_cuda = self.module is not None and hasattr(self.module, "linf_step_cuda")


def _build_record() -> dict[str, Any]:
    """What the installation noted in `_build.json`; empty if it never ran here."""
    try:
        found = read_json(Path(__file__).parent.parent / "_build.json")
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _load(record: dict[str, Any]) -> tuple[Any, str]:
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


state = _State()
_used: ContextVar[str] = ContextVar("used_backend")

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: setattr(state, "forked", True))


def build_info() -> dict[str, Any]:
    """What `_C` says of itself (compiler, flags, CPU level, OpenMP, CUDA); empty without it."""
    return dict(state.module.build_info()) if state.module else {}


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
    place, missing = torch.device(device), ""
    if _used.get(state.chosen) == "reference":
        missing = "the reference was asked for"
    elif place.type not in ("cpu", "cuda"):
        missing = f"there are no kernels for {place.type}"
    elif dtype not in OPS[op]:
        missing = f"there is no kernel for {dtype}"
    elif state.module is None or place.type == "cuda":
        missing = state.obstacle or _cuda_obstacle(place)
    return Backend("reference" if missing else "native", missing)


def _cuda_obstacle(device: torch.device) -> str:
    """Why the kernels of `_C` cannot be used on a CUDA device; "" if they can."""
    if not state.has_cuda:
        reasons = "; ".join(state.record.get("reasons", []))
        return "_C was built without CUDA" + (f" ({reasons})" if reasons else "")
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    index = torch.cuda.current_device() if device.index is None else device.index
    if index not in state.cuda_obstacles:
        reason = state.cuda_obstacles[index] = state.module.cuda_obstacle(index)
        if reason:
            _tell(f"no kernels on cuda:{index}: {reason}")
    return state.cuda_obstacles[index]


def usable(op: str, tensor: Tensor) -> bool:
    """Whether `op` takes a kernel for this tensor: there is one, and nobody looks on.

    Raises `MissingKernelError`.
    """
    return not watched() and has_kernel(op, tensor)


def has_kernel(op: str, tensor: Tensor) -> bool:
    """Whether `op` has a kernel for this tensor's device and dtype. Raises `MissingKernelError`."""
    if _used.get(state.chosen) == "reference" or tensor.dtype not in OPS[op]:
        return False
    if forward_ad._current_level >= 0:  # a kernel would leave the old tangent in place
        return False
    if not (tensor.is_cpu or tensor.is_cuda):
        return False
    missing = state.obstacle or (_cuda_obstacle(tensor.device) if tensor.is_cuda else "")
    if missing and state.required:
        raise MissingKernelError(f"{op}: ROLI_FAST_REQUIRE_EXT is set and {missing}.")
    return not missing


def run(kernel: str, like: Tensor, *arguments: object) -> None:
    """Call `kernel` where `like` lies: on its device, in its current stream."""
    if like.is_cuda:
        stream = torch.cuda.current_stream(like.device).cuda_stream
        getattr(state.module, kernel + "_cuda")(*arguments, like.get_device(), stream)
    else:
        # A forked child has lost the thread pool and would wait for it for ever.
        threads = 1 if state.forked else torch.get_num_threads()
        getattr(state.module, kernel)(*arguments, threads)


def workspace(like: Tensor, dtype: torch.dtype, sizes: str, *arguments: int) -> Tensor:
    """Memory for a CUDA kernel, as much as `_C`'s function `sizes` says."""
    size = getattr(state.module, sizes)(*arguments)
    return torch.empty(size, dtype=dtype, device=like.device)


def size(tensor: Tensor) -> tuple[int, int, int]:
    """(samples, elements, dtype code) as the bindings take them."""
    return tensor.shape[0], tensor.numel(), CODES[tensor.dtype]


def amounts(values: Sequence[float | Tensor]) -> list[tuple[int, float, int]]:
    """Each as (address or 0, value, stride over the samples).

    A tensor must be contiguous fp32 of shape (B,) or (1,) and outlive the kernel's launch.
    """
    return [
        (value.data_ptr(), 0.0, int(value.numel() > 1))
        if isinstance(value, Tensor)
        else (0, value, 0)
        for value in values
    ]
