"""Passes, FLOPs and activations, counted by hand."""

import torch
from processes import together
from torch import nn

from harness import work


def linear() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def test_passes_are_forwards_and_the_gradients_that_come_back() -> None:
    model, counted = linear(), work.Passes()
    x = torch.rand(2, 6, requires_grad=True)
    with counted.of(model):
        model(x).sum().backward()
        with torch.no_grad():
            model(x)
    model(x).sum().backward()  # outside
    assert (counted.forwards, counted.backwards) == (2, 1)


def test_the_flops_of_a_step_are_two_products_a_layer() -> None:
    model = linear()
    x, y = torch.rand(4, 6), torch.zeros(4, dtype=torch.int64)
    assert work.step_flops(model, x, y) == 2 * 2 * 4 * (6 * 5 + 5 * 3)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_what_a_graph_keeps_counts_each_storage_once_and_no_weight() -> None:
    model = linear()
    x = torch.rand(4, 6)
    with work.kept(model, x) as megabytes:
        model(x)
        # with weights that train: the input (not counted) and the ReLU's output, for the second
        # layer and the ReLU alike
        assert megabytes() == 4 * 5 * 4 / 1e6
    model.requires_grad_(False)
    with work.kept(model, x) as megabytes:
        model(x.clone().requires_grad_(True))
        assert megabytes() == 4 * 5 * 4 / 1e6  # the ReLU's


def test_a_gemm_says_its_flops() -> None:
    call, flops = work.gemm(torch.bfloat16, "cpu", quick=True)
    assert flops == 2 * 128**3
    out = call()
    assert isinstance(out, torch.Tensor) and out.shape == (128, 128)


def peak_of_a_large_tensor() -> float:
    def make() -> work.Call:
        return lambda: torch.ones(64, 1024, 1024)  # 268 MB

    return work.peak_mb(make, "cpu")


def test_peak_memory_sees_a_large_tensor() -> None:
    """In a process of its own: this one may have been larger before."""
    (member,) = together(1, peak_of_a_large_tensor)
    assert member.value > 200, member.error
