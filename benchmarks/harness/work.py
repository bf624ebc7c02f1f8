"""What a call costs besides time: passes, FLOPs, activations, memory; and a GEMM to compare."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from harness.timing import Call


class Passes:
    """Counts calls of a model and gradients that come back to its logits."""

    def __init__(self) -> None:
        self.forwards = self.backwards = 0

    @contextmanager
    def of(self, model: nn.Module) -> Iterator[None]:
        """Count inside `with`."""

        def forward(_module: nn.Module, _inputs: object, logits: Tensor) -> None:
            self.forwards += 1
            if logits.requires_grad:
                logits.register_hook(backward)

        def backward(_grad: Tensor) -> None:
            self.backwards += 1

        handle = model.register_forward_hook(forward)
        try:
            yield
        finally:
            handle.remove()


def step_flops(model: nn.Module, x: Tensor, y: Tensor) -> int:
    """FLOPs of one forward and one backward to the input alone, attention as matrix products.

    torch's counter knows no fused attention of the CPU, hence the plain one.
    """
    frozen = {p: p.requires_grad for p in model.parameters()}
    model.requires_grad_(False)
    leaf = x.detach().requires_grad_(True)
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:
        # the counter's hooks cannot take a leaf as a module's input
        loss = cross_entropy(model(leaf * 1), y)
        torch.autograd.grad(loss, leaf)
    for parameter, required in frozen.items():
        parameter.requires_grad_(required)
    return counter.get_total_flops()


def gemm(dtype: torch.dtype, device: str, quick: bool) -> tuple[Call, int]:
    """A square product in `dtype`, large enough for the device's rate, and its FLOPs."""
    size = 128 if quick else 8192 if device == "cuda" else 2048
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(size, size, generator=generator).to(device, dtype) for _ in range(2))
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out), 2 * size**3


@contextmanager
def kept(model: nn.Module, x: Tensor) -> Iterator[Callable[[], float]]:
    """MB that graphs made inside `with` keep for their backwards.

    Each storage counts once; weights, buffers and the images are there anyway.
    """
    there = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), x)}
    there |= {tensor.untyped_storage().data_ptr() for tensor in model.buffers()}
    held: dict[int, torch.UntypedStorage] = {}  # held, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in there:
            held[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield lambda: sum(storage.nbytes() for storage in held.values()) / 1e6


def peak_mb(make: Callable[[], Call], device: str) -> float:
    """Most memory that two calls take, in MB: of torch's allocator, or of this process beyond what
    it had before `make`; there it must be a fresh process."""
    if device == "cuda":
        there = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call = make()
        call(), call()
        return (torch.cuda.max_memory_allocated() - there) / 1e6
    before = most_resident()
    call = make()
    call(), call()
    return most_resident() - before


def most_resident() -> float:
    """MB of this process at its largest. `ru_maxrss` would begin with what its parent had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(entry.split()[1]) / 1e3 for entry in lines if entry.startswith("VmHWM"))
