"""Every op that updates a batch behind one signature, batches for them, and how near is equal."""

import inspect
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from roli_fast import ops

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

TEXTBOOK = {
    torch.float64: 2e-10,
    torch.float32: 2**-24 + 1e-6,
    torch.float16: 2**-11 + 1e-6,
    torch.bfloat16: 2**-8 + 1e-6,
}
"""How far results may lie from the textbook formulas in fp64, for pixels in [0, 1].

A result is rounded once, by at most one spacing (half a one to the nearest number, a whole one
toward x; spacings just below 1 are eps / 2), from a value that differs from the textbook's by the
arithmetic of fp32 and the scale's safety, some 1e-6 of a distance (fp64: 2^-33 of it).
"""


class Op(NamedTuple):
    """`run` writes into the first of `tensors`; `reference` returns something new."""

    name: str
    run: Callable[..., Tensor]
    reference: Callable[..., Tensor]
    tensors: tuple[str, ...]
    amounts: tuple[str, ...]
    public: tuple[str, ...]
    """The tensors as the op and its operator take them."""


def _op(name: str) -> Op:
    op = getattr(ops, name)
    parameters = inspect.signature(op).parameters.values()
    public = tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)
    numbers = tuple(p.name for p in parameters if p.name not in (*public, "bounds"))
    order = tuple(sorted(public, key=lambda name: name != "x_prev"))  # what is written first

    def ordered(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(*tensors: Tensor, **options) -> Tensor:
            return function(*[tensors[order.index(name)] for name in public], **options)

        return run

    return Op(name, ordered(op), ordered(op.reference), order, numbers, public)


UPDATES = {
    name: _op(name)
    for name, op in vars(ops).items()
    if name[-1] == "_" and hasattr(op, "reference")
}
SPHERES = {n: UPDATES[n] for n in ("l2_project_", "l2_step_", "apgd_linf_step_", "apgd_l2_step_")}
"""Those of the L2 ball, and APGD's."""
STARTS = ("linf_random_start", "l2_random_start", "l1_random_start")


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


def near(actual: Tensor, expected: Tensor, scale: float = 1.0) -> bool:
    """NaN where expected, else one spacing of the numbers at `scale`; in fp32, two.

    A kernel computes in fp32, which costs fp32 images some roundings and others one in a thousand.
    """
    if not torch.equal(actual.isnan(), expected.isnan()):
        return False
    allowed = torch.finfo(actual.dtype).eps * scale * (2 if actual.dtype == torch.float32 else 1)
    differs = (actual != expected) & ~expected.isnan()
    close = (actual.double() - expected.double()).abs() <= allowed
    return bool((close | ~differs).all())


def wild(shape, dtype: torch.dtype, seed: int) -> Tensor:
    """Any bits at all: subnormals, infinities, NaN, both zeros, any magnitude."""
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(-(2**31), 2**31, shape, generator=generator)
    if dtype is torch.float32:
        return bits.to(torch.int32).view(dtype)
    return bits.to(torch.int16).view(dtype)
