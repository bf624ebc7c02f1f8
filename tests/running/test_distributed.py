"""What processes tell each other, and that the end of one is the end of all."""

import datetime
import os
import signal
import time
from typing import Any

import pytest
import torch
from processes import together
from torch import Tensor, nn

from roli_fast.errors import PeerError
from roli_fast.running.distributed import Distributed
from roli_fast.running.ranks import Ranks

CPU = torch.device("cpu")


def exchange() -> dict[str, Any]:
    """Everything once; what this process got."""
    ranks = Ranks.from_environment()
    with Distributed(ranks).joined(CPU) as distributed:
        own = torch.full((2,), float(ranks.rank + 1))
        copied = [torch.full((2, 2), 5.0 + ranks.rank).t(), torch.tensor(ranks.rank)]
        distributed.broadcast_(copied)
        return {
            "wish": distributed.all_max(10 * ranks.rank),
            "first": distributed.broadcast(f"of {ranks.rank}"),
            "all": distributed.all_gather(ranks.rank),
            "tensors": torch.stack(distributed.all_gather_tensors(own)).tolist(),
            "total": distributed.all_reduce_(own.clone()).tolist(),
            "copied": [tensor.tolist() for tensor in copied],
            "is_main": distributed.is_main,
        }


def test_three_processes() -> None:
    members = together(3, exchange)
    expected = {
        "wish": 20,
        "first": "of 0",
        "all": [0, 1, 2],
        "tensors": [[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]],
        "total": [6.0, 6.0],
        "copied": [[[5.0, 5.0], [5.0, 5.0]], 0],
    }
    for rank, member in enumerate(members):
        assert member.value == {**expected, "is_main": rank == 0}, member.error


@pytest.mark.parametrize("backend", ["nccl", "gloo"])
def test_nccl_is_told_its_device(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    """Else it guesses it by the rank, wrongly where GPUs are numbered in another way."""
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(Distributed, "device_backend", backend)
    monkeypatch.setattr(Distributed, "all_max", lambda _self: 0)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _device: None)
    monkeypatch.setattr(
        torch.distributed, "init_process_group", lambda _name, **options: told.append(options)
    )
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    device = torch.device("cuda", 1)
    with Distributed(Ranks(rank=1, world=2, local=1, local_world=2)).joined(device):
        assert told[0].get("device_id") == (device if backend == "nccl" else None)


def test_alone_nothing_is_exchanged() -> None:
    with Distributed().joined(CPU) as distributed:
        assert distributed.is_main and distributed.all_max(3) == 3
        assert (distributed.all_gather("x"), distributed.broadcast(4)) == (["x"], 4)
        tensor = torch.ones(2)
        assert distributed.all_reduce_(tensor) is tensor
        assert distributed.all_gather_tensors(tensor) == [tensor]
        distributed.broadcast_([tensor])
        assert not torch.distributed.is_initialized()


def ends(how: str) -> tuple[str, float]:
    """Process 1 ends while the other waits; what is raised here, and the seconds waited."""
    ranks, began = Ranks.from_environment(), time.monotonic()
    try:
        with Distributed(ranks).joined(CPU, wait=datetime.timedelta(seconds=5)) as distributed:
            distributed.all_max()
            began = time.monotonic()
            if ranks.rank == 1:
                if how == "error":
                    raise KeyError("no such thing")
                if how == "kill -9":
                    os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(8)
            distributed.all_gather("x") if how == "error" else distributed.all_max()
        return "nothing", 0.0
    except (PeerError, KeyError) as error:
        return f"{type(error).__name__}: {error}", time.monotonic() - began


@pytest.mark.parametrize("how", ["error", "kill -9", "hang"])
def test_the_end_of_one_is_the_end_of_all(how: str) -> None:
    first, second = together(2, ends, how)
    words, seconds = first.value
    assert "PeerError: process 0 of 2 lost another one" in words and seconds < 30
    if how == "error":
        assert second.value[0] == "KeyError: 'no such thing'" and seconds < 4
    elif how == "kill -9":
        assert second.process.exitcode == -signal.SIGKILL and seconds < 4


def test_each_process_has_its_own_gpu_where_there_are_enough(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Four processes on two GPUs share them, which NCCL refuses."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    alone, second, fourth = Ranks(), Ranks(1, 2, 1, 2), Ranks(3, 4, 3, 4)
    assert [r.device("auto") for r in (alone, second, fourth)] == ["auto", "cuda:1", "cuda:1"]
    assert fourth.device("cpu") == "cpu"
    assert [Distributed(r).device_backend for r in (second, fourth)] == ["nccl", "gloo"]
    two_machines = Ranks(5, 8, 1, 2)
    assert two_machines.device("cuda") == "cuda:1" and two_machines.own_gpu
    assert (alone.command, fourth.command) == ("python", "torchrun --nproc-per-node=4")


SIZES = (2, 3)
"""Images of each process."""


class Net(nn.Module):
    """A convolution in channels_last, BatchNorm, one in eval mode, a layer that is not used, a head
    of double precision with a frozen bias."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        self.norm, self.still = nn.BatchNorm2d(4), nn.BatchNorm2d(4).eval()
        self.unused, self.head = nn.Linear(2, 2), nn.Linear(4, 2).double()
        self.head.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.still(self.norm(self.conv(x.to(memory_format=torch.channels_last))))
        return self.head(maps.relu().mean((2, 3)).double())

    def numbers(self) -> dict[str, Any]:
        """State and gradients."""
        grads = {f"grad {n}": p.grad for n, p in self.named_parameters() if p.grad is not None}
        return {name: tensor.numpy() for name, tensor in (grads | self.state_dict()).items()}


def backward(net: Net, rank: int) -> None:
    """The share of process `rank` in the mean over all images."""
    x = torch.randn(SIZES[rank], 3, 5, 5, generator=torch.Generator().manual_seed(rank))
    (net(x).square().sum() / sum(SIZES)).backward()


def merged() -> dict[str, Any]:
    """This process's gradients and buffers after the merge."""
    ranks, net = Ranks.from_environment(), Net()
    with Distributed(ranks).joined(CPU) as distributed:
        backward(net, ranks.rank)
        distributed.merge_gradients_(net, SIZES[ranks.rank] / sum(SIZES))
    return net.numbers()


def test_two_processes_have_the_gradients_of_all_images() -> None:
    first, second = [member.value for member in together(2, merged)]
    assert all((array == second[name]).all() for name, array in first.items())
    net, shares = Net(), [Net(), Net()]
    for rank, own in enumerate(shares):
        backward(own, rank)
        backward(net, rank)
    truth = net.numbers()
    assert first.keys() == truth.keys() and "grad unused.weight" not in truth
    for name, expected in truth.items():
        if name in ("norm.running_mean", "norm.running_var"):  # those of each, by its share
            both = [own.numbers()[name] for own in shares]
            expected = (2 * both[0] + 3 * both[1]) / 5
        if name != "norm.num_batches_tracked":
            torch.testing.assert_close(torch.tensor(first[name]), torch.tensor(expected))


def waiting(kind: str) -> str:
    """The second process comes late, or ends; or the first is told to stop."""
    distributed, asked = Distributed(Ranks.from_environment()), 0

    def check() -> None:
        nonlocal asked
        asked += 1
        if kind == "stopped":
            raise KeyboardInterrupt

    try:
        with distributed.joined(torch.device("cpu")):
            wait = distributed.patient_barrier()
            if distributed.rank == 1:
                time.sleep(1.0)
                if kind == "gone":
                    os._exit(3)
            wait(check)
            return f"together, asked {'often' if asked > 1 else 'seldom'}"
    except (PeerError, KeyboardInterrupt) as error:
        return type(error).__name__


@pytest.mark.parametrize(
    ("kind", "first"),
    [
        ("late", "together, asked often"),
        ("gone", "PeerError"),
        ("stopped", "KeyboardInterrupt"),
    ],
)
def test_a_patient_barrier_waits_asks_and_hears_of_the_end(kind: str, first: str) -> None:
    assert together(2, waiting, kind)[0].value == first
