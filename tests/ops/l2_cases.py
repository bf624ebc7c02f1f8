"""The ops on L2 balls and APGD's steps behind one signature, and batches to feed them."""

from collections.abc import Callable
from typing import NamedTuple

import textbook
import torch
from references import reference
from torch import Tensor

from roli_fast import ops

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class Op(NamedTuple):
    """`run` writes into the first of `tensors`; the other two return something new."""

    name: str
    run: Callable[..., Tensor]
    reference: Callable[..., Tensor]
    textbook: Callable[..., Tensor]
    tensors: tuple[str, ...]
    amounts: tuple[str, ...]


def _apgd(norm: str) -> Op:
    step, specification = f"apgd_{norm}_step_", f"apgd_{norm}_step"

    def run(x_prev, x_adv, grad, x, **amounts):
        return getattr(ops, step)(x_adv, x_prev, grad, x, **amounts)

    def same(x_prev, x_adv, grad, x, **amounts):
        return getattr(reference, specification)(x_adv, x_prev, grad, x, **amounts)

    def truth(x_prev, x_adv, grad, x, **amounts):
        return textbook.apgd_step(norm, x_adv, x_prev, grad, x, **amounts)

    tensors = ("x_prev", "x_adv", "grad", "x")
    return Op(step, run, same, truth, tensors, ("eps", "step_size", "momentum"))


STEP = ("x_adv", "grad", "x")
OPS = {
    op.name: op
    for op in (
        Op(
            "l2_project_",
            ops.l2_project_,
            reference.l2_project,
            textbook.l2_project,
            ("x_adv", "x"),
            ("eps",),
        ),
        Op(
            "l2_step_",
            ops.l2_step_,
            reference.l2_step,
            textbook.l2_step,
            STEP,
            ("eps", "step_size"),
        ),
        _apgd("linf"),
        _apgd("l2"),
    )
}


def batch(op: Op, shape, dtype: torch.dtype, seed: int = 0, spread: float = 0.05) -> list[Tensor]:
    """The tensors of one call: pixels, iterates around them, a gradient."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(shape, generator=generator)
    values = {"x": x, "grad": torch.randn(shape, generator=generator)}
    for name in ("x_adv", "x_prev"):
        values[name] = (x + spread * torch.randn(shape, generator=generator)).clamp(0, 1)
    return [values[name].to(dtype) for name in op.tensors]


def amounts(op: Op, eps: float, samples: int | None = None) -> dict:
    """Numbers or, for a number of samples, tensors: sample 0 has radius 0, others up to `eps`.

    FAB's planes have values of both signs in proportion to `eps`.
    """
    values = {"eps": eps, "step_size": 0.7 * eps, "momentum": 0.75, "density": 0.3}
    values |= {"value": -0.9 * eps, "alpha_max": 0.1, "eta": 1.05}
    if samples is not None:
        scale = torch.linspace(0, 1, samples)
        values = {"eps": eps * scale, "step_size": eps * (1.3 - scale), "momentum": 1 - scale / 2}
        values |= {"density": scale, "value": 2 * eps * (scale - 0.4)}
        values |= {"alpha_max": 0.5 * scale, "eta": 1 + scale / 10}
    return {name: values[name] for name in op.amounts}


def distance(op: Op, moved: Tensor, x: Tensor) -> Tensor:
    """How far each sample is from `x`, in fp64."""
    delta = (moved.double() - x.double()).flatten(1)
    return delta.abs().amax(1) if "linf" in op.name else delta.norm(dim=1)


def radius(eps, x: Tensor) -> Tensor:
    """`eps` as the ops mean it, in fp64."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    return torch.as_tensor(eps, dtype=torch.float64).to(wide).double()


def same_numbers(actual: Tensor, expected: Tensor, share: float = 0.0) -> bool:
    """Equal, NaN where expected; up to `share` of the elements may be one spacing off."""
    if not torch.equal(actual.isnan(), expected.isnan()):
        return False
    differs = (actual != expected) & ~expected.isnan()
    near = (actual.double() - expected.double()).abs() <= torch.finfo(actual.dtype).eps
    return bool((near | ~differs).all()) and differs.sum().item() <= share * differs.numel()
