"""The random starts as an operator."""

import torch
from torch import Tensor

from roli_fast.errors import ArgumentError, ArgumentTypeError, describe
from roli_fast.ops import checks, reference
from roli_fast.ops.dispatch.random import random_start
from roli_fast.ops.library.amounts import check_batch

NORMS = ("linf", "l2", "l1")


@torch.library.custom_op("roli_fast::random_start", mutates_args=())
def random_start_op(  # noqa: PLR0913 - the op's own arguments
    norm: str,
    x: Tensor,
    key: Tensor,
    sample_ids: Tensor | None,
    eps: Tensor,
    low: float,
    high: float,
) -> Tensor:
    """`ops.<norm>_random_start` for a key, int64 (1,), that the caller has drawn."""
    _check(norm, x, key, sample_ids, eps)
    return random_start(norm, x, key, sample_ids, eps, (low, high))


@random_start_op.register_fake
def _(  # noqa: PLR0913 - the op's own arguments
    norm: str,
    x: Tensor,
    key: Tensor,
    sample_ids: Tensor | None,
    eps: Tensor,
    low: float,
    high: float,
) -> Tensor:
    _check(norm, x, key, sample_ids, eps)
    reference.box_limits(low, high, x.dtype)
    return torch.empty_like(x)


def _check(norm: str, x: Tensor, key: Tensor, sample_ids: Tensor | None, eps: Tensor) -> None:
    if norm not in NORMS:
        raise ArgumentError(describe("norm", f"one of: {', '.join(NORMS)}", repr(norm)))
    check_batch(x, {}, {"eps": eps}, name="x")
    checks.sample_ids(sample_ids, x)
    checks.dense("key", key)
    if key.dtype != torch.int64 or key.shape != (1,) or key.device != x.device:
        got = f"{key.dtype} of shape {tuple(key.shape)} on {key.device}"
        raise ArgumentTypeError(describe("key", f"an int64 tensor (1,) on {x.device}", got))
