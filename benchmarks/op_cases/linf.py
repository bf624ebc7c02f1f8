"""What linf_step_ is timed against, for benchmarks/groups/ops.py."""

from collections.abc import Callable

import torch
from torch import Tensor

from roli_fast import ops

EPS, STEP = 8 / 255, 2 / 255
ROUNDS = 41
Call = Callable[[], object]
TARGETS = {
    "linf_step_ 64x3x32x32": {"eager": 4.0, "inductor": 2.0},
    "linf_step_ 64x3x224x224": {"copy": 1 / 1.3},
}


def eager_step(x_adv: Tensor, grad: Tensor, x: Tensor) -> Tensor:
    """The Linf step of PGD as torchattacks writes it."""
    adv_images = x_adv.detach() + STEP * grad.sign()
    delta = torch.clamp(adv_images - x, min=-EPS, max=EPS)
    return torch.clamp(x + delta, min=0, max=1).detach()


def eager_step_in_place(x_adv: Tensor, grad: Tensor, x: Tensor) -> None:
    """The same, for a compiler that may write the result where the input was."""
    x_adv.copy_(eager_step(x_adv, grad, x))


def candidates(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> dict[str, Call]:
    """What is timed; each call has memory of its own."""
    generator = torch.Generator().manual_seed(0)
    x, grad = torch.rand(shape, generator=generator), torch.randn(shape, generator=generator)
    x, grad = x.to(device, dtype), grad.to(device, dtype)
    x_adv = [x.clone() for _ in range(4)]
    copies = [torch.empty_like(x) for _ in range(2)]
    compiled, compiled_in_place = torch.compile(eager_step), torch.compile(eager_step_in_place)

    def copy() -> None:  # the op reads three tensors and writes one: two copies move as much
        copies[0].copy_(x)
        copies[1].copy_(grad)

    return {
        "native": lambda: ops.linf_step_(x_adv[0], grad, x, eps=EPS, step_size=STEP),
        "eager": lambda: eager_step(x_adv[1], grad, x),
        "inductor": lambda: compiled(x_adv[2], grad, x),
        "inductor in place": lambda: compiled_in_place(x_adv[3], grad, x),
        "copy": copy,
    }


CASES = {"linf_step_": candidates}
