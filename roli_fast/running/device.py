"""On what a program computes: its device, and how many CPU threads."""

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from roli_fast.errors import ArgumentError, describe

_ONE_THREAD_FLOPS = 2e9
_PIXELS_A_USE = 16
"""How many pixels of an image there are for every use of a weight: a stride squared, roughly."""


def pick_device(name: str) -> torch.device:
    """ "auto" takes a GPU where there is one; anything else is a torch device name."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ArgumentError(describe("device", "'auto', 'cpu' or 'cuda'", repr(name))) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ArgumentError(
            describe("device", "a device that torch finds", repr(name), "Use --device cpu.")
        )
    return device


def pick_threads(model: nn.Module, image_size: int, batch_size: int) -> int:
    """How many CPU threads pay for this model: one where a batch is below about 2 GFLOP, by the
    number of its weights, else what torch would take (OMP_NUM_THREADS is respected).

    OpenMP threads wait by spinning: for small operations a second thread gains little on a calm
    machine and loses a factor of ten and more beside another busy process.
    """
    weights = sum(parameter.numel() for parameter in model.parameters())
    flops = 2 * weights * batch_size * image_size**2 / _PIXELS_A_USE
    # compiled and quantised models hide their weights
    return 1 if 0 < flops < _ONE_THREAD_FLOPS else min(torch.get_num_threads(), _usable_cpus())


def saved_threads(tree: Mapping[str, Any]) -> int | None:
    """The CPU threads that a file records; None where it does not.

    Raises:
        ValueError: they are no number that a machine could have.
    """
    threads = tree.get("threads")
    if threads is not None and (type(threads) is not int or not 0 < threads <= 4096):
        raise ValueError(f"threads are {threads!r}")
    return threads


def _usable_cpus() -> int:
    """CPUs that this process may run on, where the system tells."""
    usable = getattr(os, "sched_getaffinity", None)
    return len(usable(0)) if usable else (os.cpu_count() or 1)
