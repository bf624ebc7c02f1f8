"""Models in the wrappers of torch.distributed: processes whose searches need different passes."""

import datetime
from typing import Any

import pytest
import torch
import torch.distributed as dist
from processes import together
from tiny_models import Mixed, images
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from roli_fast.attacks import APGD, FAB, PGD, Square
from roli_fast.engine import bound
from roli_fast.errors import ArgumentError

X = images(4, 3, 6, 6)
WAIT = datetime.timedelta(seconds=20)


def searched() -> list[bool]:
    """Whether each attack finds on the wrapped model what it finds on the model; one process has
    images that are fooled to begin with."""
    dist.init_process_group("gloo", timeout=WAIT)
    try:
        model = Mixed()
        labels = Mixed().eval()(X).argmax(1)
        y = labels if dist.get_rank() else (labels + 1) % 4
        wrapped = DistributedDataParallel(model)
        wrapped(X).sum().backward()  # a training step in between: its buckets are built anew
        same = []
        for attack in (
            PGD(eps=0.02, step_size=0.005, steps=4, keep="adversarial", restarts=2),
            APGD(eps=0.02, steps=4),
            FAB(eps=0.02, steps=2),
            Square(eps=0.02, n_queries=10),
        ):
            found = []
            for own in (model, wrapped, nn.Sequential(nn.Identity(), wrapped)):
                found.append(attack(own, X, y, torch.Generator().manual_seed(0)))
            same.append(torch.equal(found[0], found[1]) and torch.equal(found[0], found[2]))
        dist.barrier()
        wrapped(X).sum().backward()
        return [*same, wrapped.training, "forward" not in vars(wrapped)]
    finally:
        dist.destroy_process_group()


def test_processes_whose_searches_differ() -> None:
    for member in together(2, searched):
        assert not member.error, member.error
        assert all(member.value), member.value


class FullyShardedDataParallel(nn.Sequential):
    """By its name: a real one needs several processes with a GPU each, or seconds."""


def test_shards_are_refused_where_there_are_several(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = nn.Sequential(FullyShardedDataParallel(Mixed()))
    bound(model)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    with pytest.raises(ArgumentError, match="`model`: expected a module whose weights are all"):
        bound(model)


def test_data_parallel_without_devices_is_the_module() -> None:
    model = Mixed()
    assert bound(nn.DataParallel(model)).model is model
