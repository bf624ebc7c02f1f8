"""What processes tell each other, and that the end of one is the end of all."""

import datetime
import os
import signal
import time
from typing import Any

import pytest
import torch
from processes import together

from roli_fast.errors import ConfigError, DataError, PeerError
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
            "total": team.total(own.clone()).tolist(),
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


def test_alone_nothing_is_exchanged() -> None:
    with Team().joined(CPU) as team:
        assert (team.leads, team.agree(3), team.gather("x"), team.from_first(4)) == (
            True,
            3,
            ["x"],
            4,
        )
        tensor = torch.ones(2)
        assert team.total(tensor) is tensor and team.gather_tensors(tensor) == [tensor]
        team.copy_first_([tensor])
        team.fail(ValueError())
        assert not torch.distributed.is_initialized()


def fails(kind: type[Exception], where: str) -> str:
    """Process 1 fails before an exchange of the others; what the exception here says."""
    ranks = Ranks.from_environment()
    try:
        with Team(ranks).joined(CPU) as team:
            team.agree()
            if ranks.rank == 1:
                raise kind("no such thing")
            getattr(team, where)(*([] if where == "agree" else [torch.ones(1)]))
            return "nothing"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


@pytest.mark.parametrize("where", ["agree", "gather", "total", "gather_tensors"])
def test_an_error_in_one_is_raised_in_all(where: str) -> None:
    first, second, third = [member.value for member in together(3, fails, KeyError, where)]
    assert first == third == "PeerError: process 1 stopped: KeyError: 'no such thing'"
    assert second == "KeyError: 'no such thing'"


def test_an_error_of_ours_keeps_its_type() -> None:
    values = [member.value for member in together(2, fails, DataError, "agree")]
    assert values == ["DataError: process 1: no such thing", "DataError: no such thing"]


def dies() -> tuple[str, float]:
    """Process 1 is killed while the other waits; what that says, and the seconds waited."""
    ranks, began = Ranks.from_environment(), 0.0
    try:
        with Team(ranks).joined(CPU) as team:
            team.agree()
            began = time.monotonic()
            if ranks.rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            team.agree()
        return "nothing", 0.0
    except PeerError as error:
        return str(error), time.monotonic() - began


def test_a_process_that_dies_leaves_none_waiting() -> None:
    first, second = together(2, dies)
    words, seconds = first.value
    assert "process 0 of 2 lost another one" in words and seconds < 30
    assert second.process.exitcode == -signal.SIGKILL


def hangs() -> str:
    """Process 1 never comes to the exchange."""
    ranks = Ranks.from_environment()
    try:
        with Team(ranks).joined(CPU, wait=datetime.timedelta(seconds=3)) as team:
            team.agree()
            if ranks.rank == 1:
                time.sleep(8)
            team.agree()
        return "nothing"
    except PeerError as error:
        return str(error)


def test_a_process_that_hangs_is_not_waited_for_forever() -> None:
    values = [member.value for member in together(2, hangs)]
    assert "did not answer in time" in values[0]


@pytest.mark.parametrize("broken", ["one", ""])
def test_variables_that_make_no_sense(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    monkeypatch.setenv("RANK", broken)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="RANK"):
        Ranks.from_environment()


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
