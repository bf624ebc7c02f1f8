"""Out of memory: the error names an argument, its value and what helps; other errors pass."""

import pytest
import torch

from roli_fast.errors import ArgumentError, InterruptedRunError, OutOfMemoryError
from roli_fast.running.memory import memory_guard

CPU = torch.device("cpu")
REFUSED = "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory"
FULL = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError(REFUSED),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    MemoryError(),
)


@pytest.mark.parametrize("error", FULL, ids=lambda error: str(error)[:12] or "MemoryError")
def test_names_the_argument_and_its_value(error: Exception) -> None:
    with pytest.raises(OutOfMemoryError) as caught:
        with memory_guard("batch_size", 128, CPU, where="stage 'probe': "):
            raise error
    assert str(caught.value) == (
        "stage 'probe': `batch_size`: expected a number of images that fit into the memory of cpu, "
        "got 128. Lower it."
    )
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    "error", [InterruptedRunError("stop", 2), ArgumentError("`y`: ..."), RuntimeError("shape")]
)
def test_other_errors_pass(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, memory_guard("batch_size", 128, CPU):
        raise error
    assert caught.value is error


def test_the_inner_guard_speaks() -> None:
    with pytest.raises(OutOfMemoryError, match="got 4"):
        with memory_guard("outer", 8, CPU), memory_guard("inner", 4, CPU):
            torch.empty(2**50, dtype=torch.uint8)  # which a CPU refuses, too
