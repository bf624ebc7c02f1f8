"""Rows come over in order, all of them, late on a GPU's host and by counting alone."""

import pytest
import torch

from roli_fast.train.metrics import Tally

HERE, GPU = torch.device("cpu"), torch.device("cuda")
"""A tally for a GPU takes rows of a CPU as well, and is as late."""


def row(number: int) -> torch.Tensor:
    return torch.tensor([float(number), 1.0], dtype=torch.float64)


def taken(device: torch.device, count: int) -> list[list[int]]:
    """What is read after each of `count` updates, and at the end."""
    tally, found = Tally(device, block=3), []
    for number in range(count):
        tally.add(row(number))
        found.append(tally.take(last=False) if tally.due else [])
    return [[int(first) for first, _ in rows] for rows in (*found, tally.take(last=True))]


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        (HERE, [[], [], [0, 1, 2], [], [], [3, 4, 5], [], [6]]),
        (GPU, [[], [], [], [], [], [0, 1, 2], [], [3, 4, 5, 6]]),
    ],
    ids=["cpu", "gpu"],
)
def test_blocks_of_three(device: torch.device, expected: list[list[int]]) -> None:
    assert taken(device, 7) == expected


@pytest.mark.parametrize("device", [HERE, GPU], ids=["cpu", "gpu"])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 6, 11])
def test_nothing_is_lost_or_read_twice(device: torch.device, count: int) -> None:
    assert sum(taken(device, count), []) == list(range(count))


def test_its_length_is_what_was_not_taken() -> None:
    tally, lengths = Tally(GPU, block=2), []
    for number in range(5):
        tally.add(row(number))
        if tally.due:
            tally.take(last=False)
        lengths.append(len(tally))
    assert lengths == [1, 2, 3, 2, 3]
    tally.take(last=True)
    assert len(tally) == 0 and not tally.due


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_not_waited_for() -> None:
    tally, rows = Tally(GPU, block=2), [row(number).cuda() for number in range(6)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = []
        for number in rows:
            tally.add(number)
            if tally.due:
                found.append(tally.take(last=False))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    found.append(tally.take(last=True))
    read = torch.cat([part for part in found if len(part)])
    assert not read.is_cuda and read[:, 0].tolist() == list(range(6))
