"""lora_linear for graphs: torch's own operators, and the dropout mask as one of ours."""

from typing import Any

import torch
from torch import Tensor

from roli_fast.errors import ArgumentError, ArgumentTypeError, describe
from roli_fast.ops import checks, native, reference
from roli_fast.ops.dispatch.lora import Rows, lora_dropout


@torch.library.custom_op("roli_fast::lora_dropout", mutates_args=())
def lora_dropout_op(x: Tensor, seed: Tensor, dropout: float) -> Tensor:
    """Zeros where the mask of `ops.lora_linear` says so; see `reference.lora_dropout`."""
    _check(x, seed, dropout)
    return lora_dropout(x, seed, dropout, out=torch.empty(x.shape, dtype=x.dtype, device=x.device))


@lora_dropout_op.register_fake
def _(x: Tensor, seed: Tensor, dropout: float) -> Tensor:
    _check(x, seed, dropout)
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _check(x: Tensor, seed: Tensor, dropout: float) -> None:
    checks.batch("x", x)
    checks.dense("seed", seed)
    if seed.dtype != torch.int64 or seed.numel() != 1 or seed.device != x.device:
        got = f"{seed.dtype} of shape {tuple(seed.shape)} on {seed.device}"
        raise ArgumentTypeError(describe("seed", f"an int64 tensor (1,) on {x.device}", got))
    if not 0.0 <= dropout < 1.0:
        raise ArgumentError(describe("dropout", "a number in [0, 1)", dropout))


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: Tensor) -> None:
    _, seed, ctx.dropout = inputs
    ctx.save_for_backward(seed)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    return lora_dropout_op(grad, *ctx.saved_tensors, ctx.dropout), None, None


lora_dropout_op.register_autograd(_backward, setup_context=_keep)


def lora_linear(  # noqa: PLR0913 - the layer's own quantities
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a: Tensor,
    b: Tensor,
    seed: Tensor | None,
    options: tuple[float, float, Rows, torch.dtype],
) -> Tensor:
    """What `ops.lora_linear` returns, followed by autograd through every single operation."""
    scale, dropout, rows, dtype = options
    x, weight, a, b = (value.to(dtype) for value in (x, weight, a, b))
    bias = None if bias is None else bias.to(dtype)
    branch = x
    if dropout and seed is not None:
        drop = lora_dropout_op if native.watched() else reference.lora_dropout
        branch = drop(x, seed, dropout)
    gain = scale / (1.0 - dropout)
    return reference.lora_apply(branch, x, weight, bias, a, b, gain=gain, rows=rows)
