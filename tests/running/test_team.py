"""What processes tell each other, and that the end of one is the end of all."""

import datetime
import os
import signal
import time
from typing import Any

import pytest
import torch
from processes import together

from roli_fast.errors import PeerError
from roli_fast.running.ranks import Ranks
from roli_fast.running.team import Team

CPU = torch.device("cpu")


def exchange() -> dict[str, Any]:
    """Everything once; what this process got."""
    ranks = Ranks.from_environment()
    with Team(ranks).joined(CPU) as team:
        own = torch.full((2,), float(ranks.rank + 1))
        copied = [torch.full((2, 2), 5.0 + ranks.rank).t(), torch.tensor(ranks.rank)]
        team.copy_first_(copied)
        return {
            "wish": team.agree(10 * ranks.rank),
            "first": team.from_first(f"of {ranks.rank}"),
            "all": team.gather(ranks.rank),
            "tensors": torch.stack(team.gather_tensors(own)).tolist(),
            "total": team.sum_(own.clone()).tolist(),
            "copied": [tensor.tolist() for tensor in copied],
            "leads": team.leads,
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
        assert member.value == {**expected, "leads": rank == 0}, member.error


@pytest.mark.parametrize("backend", ["nccl", "gloo"])
def test_nccl_is_told_its_device(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    """Else it guesses it by the rank, wrongly where GPUs are numbered in another way."""
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(Team, "device_backend", backend)
    monkeypatch.setattr(Team, "agree", lambda _team: 0)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _device: None)
    monkeypatch.setattr(
        torch.distributed, "init_process_group", lambda _name, **options: told.append(options)
    )
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    device = torch.device("cuda", 1)
    with Team(Ranks(rank=1, world=2, local=1, local_world=2)).joined(device):
        assert told[0].get("device_id") == (device if backend == "nccl" else None)


def test_alone_nothing_is_exchanged() -> None:
    with Team().joined(CPU) as team:
        assert team.leads and (team.agree(3), team.gather("x"), team.from_first(4)) == (3, ["x"], 4)
        tensor = torch.ones(2)
        assert team.sum_(tensor) is tensor and team.gather_tensors(tensor) == [tensor]
        team.copy_first_([tensor])
        assert not torch.distributed.is_initialized()


def ends(how: str) -> tuple[str, float]:
    """Process 1 ends while the other waits; what is raised here, and the seconds waited."""
    ranks, began = Ranks.from_environment(), time.monotonic()
    try:
        with Team(ranks).joined(CPU, wait=datetime.timedelta(seconds=5)) as team:
            team.agree()
            began = time.monotonic()
            if ranks.rank == 1:
                if how == "error":
                    raise KeyError("no such thing")
                if how == "kill -9":
                    os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(8)
            team.gather("x") if how == "error" else team.agree()
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
    assert [Team(r).device_backend for r in (second, fourth)] == ["nccl", "gloo"]
    two_machines = Ranks(5, 8, 1, 2)
    assert two_machines.device("cuda") == "cuda:1" and two_machines.own_gpu
    assert (alone.command, fourth.command) == ("python", "torchrun --nproc-per-node=4")
