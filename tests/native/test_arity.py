"""Every CUDA binding takes what Python hands to it: without a driver the call ends in CUDA's own
error, not in that of a wrong signature."""

import importlib

import pytest
import torch
from building import missing
from cases import UPDATES, amounts, batch

from roli_fast import ops
from roli_fast.ops import lora, native


@pytest.fixture
def called(monkeypatch):
    """The bindings called since: tensors of the CPU pass for those of a GPU."""
    if ops.backend("linf_step_", "cpu", torch.float32).name == "reference":
        missing("there are no compiled kernels")
    module, found = importlib.import_module("roli_fast._C"), set()
    if not native.state.has_cuda:
        pytest.skip("the module was built without CUDA")
    if module.cuda_driver_version():
        pytest.skip("a kernel would run on memory of the CPU")

    def run(kernel: str, like: object, *arguments: object) -> None:
        with pytest.raises(RuntimeError, match=r"on CUDA: cudaError(InsufficientDriver|NoDevice)"):
            getattr(module, f"{kernel}_cuda")(*arguments, 0, 0)
        found.add(f"{kernel}_cuda")

    monkeypatch.setattr(native, "run", run)
    monkeypatch.setattr(native, "_cuda_obstacle", lambda device: "")
    monkeypatch.setattr(torch.Tensor, "is_cuda", True, raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(lora, "_faster", lambda device, case, first, second: first)
    yield found
    expected = {name for name in dir(module) if name.endswith("_cuda")}
    assert found == expected


def test_every_binding_takes_its_arguments(called):
    for op in UPDATES.values():
        for samples in (None, 3):
            op.run(*batch(op, (3, 8), torch.float32), **amounts(op, 0.1, samples))
    x, loss = torch.rand(3, 8), torch.rand(3)
    ops.select_best_(x.clone(), x.clone(), loss.clone(), x, x.clone(), loss)
    for start in (ops.linf_random_start, ops.l2_random_start, ops.l1_random_start):
        start(x, eps=0.1)
    seed, rows = torch.tensor([1]), ((0, 8), (16, 24))
    tensors = [torch.randn(s).bfloat16() for s in ((64, 16), (24, 16), (8, 16), (16, 4))]
    x, weight, a, b = (value.requires_grad_() for value in tensors)
    y = ops.lora_linear(x, weight, None, a, b, scale=1.0, dropout=0.1, seed=seed, rows=rows)
    y.backward(torch.ones_like(y))
    ops.lora_merge_([weight.detach().clone()], [weight], [a], [b], scales=[1.0], rows=[rows])
