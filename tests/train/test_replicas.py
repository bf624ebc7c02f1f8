"""Gradients and statistics of several processes, beside the same sums in one."""

from typing import Any

import torch
from processes import together
from torch import Tensor, nn

from roli_fast.running.distributed import Distributed
from roli_fast.running.ranks import Ranks
from roli_fast.train.phases import Replicas

SIZES = (2, 3)
"""Images of each process."""


class Net(nn.Module):
    """A convolution in channels_last, BatchNorm, a frozen bias, a layer that is not used, a head of
    double precision."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        self.norm = nn.BatchNorm2d(4)
        self.still = nn.BatchNorm2d(4).eval()
        self.unused = nn.Linear(2, 2)
        self.head = nn.Linear(4, 2).double()
        self.head.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.still(self.norm(self.conv(x.to(memory_format=torch.channels_last))))
        return self.head(maps.relu().mean((2, 3)).double())


def images(rank: int) -> Tensor:
    """Those of process `rank`."""
    return torch.randn(SIZES[rank], 3, 5, 5, generator=torch.Generator().manual_seed(rank))


def loss(net: nn.Module, rank: int) -> Tensor:
    """The share of process `rank` in the mean over all images."""
    return net(images(rank)).square().sum() / sum(SIZES)


def merged() -> dict[str, Any]:
    """This process's gradients and buffers after the merge; it began with weights of its own."""
    ranks = Ranks.from_environment()
    with Distributed(ranks).joined(torch.device("cpu")) as distributed:
        net = Net()
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(ranks.rank)
        names = [n for n, p in net.named_parameters() if p.requires_grad]
        replicas = Replicas(net, names, distributed)
        replicas.begin()
        loss(net, ranks.rank).backward()
        distributed.all_max()
        replicas.merge(SIZES[ranks.rank] / sum(SIZES))
        grads = {n: p.grad.numpy() for n, p in net.named_parameters() if p.grad is not None}
        return {"grads": grads, "state": {n: t.numpy() for n, t in net.state_dict().items()}}


def test_two_processes_have_the_gradients_of_all_images() -> None:
    first, second = [member.value for member in together(2, merged)]
    means, variances = [], []
    net = Net()
    for rank, size in enumerate(SIZES):
        own = Net()
        loss(own, rank)
        means.append(own.norm.running_mean * size / sum(SIZES))
        variances.append(own.norm.running_var * size / sum(SIZES))
        loss(net, rank).backward()
    truth = {n: p.grad for n, p in net.named_parameters() if p.grad is not None}
    assert first["grads"].keys() == second["grads"].keys() == truth.keys()
    assert "head.bias" not in truth and "unused.weight" not in truth
    for name, expected in truth.items():
        torch.testing.assert_close(torch.tensor(first["grads"][name]), expected)
    torch.testing.assert_close(torch.tensor(first["state"]["norm.running_mean"]), sum(means))
    torch.testing.assert_close(torch.tensor(first["state"]["norm.running_var"]), sum(variances))
    for part in ("grads", "state"):
        for name, array in first[part].items():
            assert (array == second[part][name]).all(), name
    for name in ("conv.weight", "still.running_var", "head.weight"):
        assert (first["state"][name] == net.state_dict()[name].numpy()).all(), name
