"""Attention by torch's fused kernel or by matrix products, whichever is quicker."""

import contextlib
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from roli_fast.engine.products import attention_products, can_multiply
from roli_fast.engine.recomputing import is_recomputed

MOST_TOKENS = 1024
"""Beyond it a matrix of all pairs of tokens takes too much memory."""

MEASURED_SCORES = 2**19
"""Most scores (pairs of tokens, a head each) in a measurement: 2 images of a ViT-S, some 40 ms."""

ROUNDS = 2
"""How often each is timed; the quicker time counts, as the first call prepares its kernels."""

CLEARLY = 0.9
"""Products, which take more memory, are chosen below this share of the fused kernel's time."""

_chosen: dict[tuple[object, ...], bool] = {}
"""Case -> whether products are quicker: of this process, which measures each case once."""


def attention_by(
    choice: str, kind: str, short: torch.dtype | None
) -> contextlib.AbstractContextManager[object]:
    """What a model's passes run inside; nothing where torch's kernel is taken anyway.

    "auto" measures on the CPU in a short dtype only: there the fused backward of torch 2.11 may
    take six times as long as the products, and there no result is expected to its last bit.
    """
    if choice == "products":
        return ChosenAttention(lambda *_: True)
    if choice == "auto" and short is not None and kind == "cpu":
        return ChosenAttention(lambda *case: _surely(*case) or products_are_quicker(*case))
    return contextlib.nullcontext()


class ChosenAttention(TorchFunctionMode):
    """Inside `with`, `scaled_dot_product_attention` is softmax(q k^T) v in three operations, where
    `choose(query, key, value, mask, scale)` says so.

    What they cannot do, boolean masks, dropout, causal or grouped attention, goes to torch's, and
    so does attention in blocks that are computed again in the backward pass.
    """

    def __init__(self, choose: Callable[..., bool]) -> None:
        super().__init__()
        self._choose = choose

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Every torch function inside `with`."""
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention and not is_recomputed():
            case = _case_for_products(*args, **kwargs)
            if case is not None and self._choose(*case):
                return _products(*case)
        return func(*args, **kwargs)


_Case = tuple[Tensor, Tensor, Tensor, Tensor | None, float | None]


def _case_for_products(  # noqa: PLR0913 - the signature of torch's
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> _Case | None:
    """None where this is not for matrix products."""
    masked = attn_mask is not None and not attn_mask.is_floating_point()
    if masked or dropout_p or is_causal or enable_gqa or key.shape[-2] > MOST_TOKENS:
        return None
    if query.ndim < 3 or not query.shape[:-2] == key.shape[:-2] == value.shape[:-2]:
        return None  # two-dimensional, or broadcast
    return query, key, value, attn_mask, scale


def _products(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None
) -> Tensor:
    """The scale is applied by the first product itself, which saves a pass over the queries."""
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    if can_multiply(query, key, value, mask):
        return attention_products(query, key, value, mask, factor)
    lead = query.shape[:-2]
    q, k, v = (tensor.flatten(0, -3) for tensor in (query, key, value))
    nothing = q.new_empty(1).expand(len(q), q.shape[1], k.shape[1])
    scores = torch.baddbmm(nothing, q, k.transpose(1, 2), beta=0, alpha=factor)
    if mask is not None:
        scores = (scores.unflatten(0, lead) + mask.to(scores.dtype)).flatten(0, -3)
    return (torch.softmax(scores, dim=-1) @ v).unflatten(0, lead)


def _fused(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None
) -> Tensor:
    return functional.scaled_dot_product_attention(query, key, value, mask, scale=scale)


def _surely(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None
) -> bool:
    """Whether nothing is to be measured: gradients with kernels between the products took 0.1 to
    0.8 of the fused kernel's time from 17 to 1024 tokens, and a busy machine measures badly."""
    graph = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
    return graph and can_multiply(query, key, value, mask)


def products_are_quicker(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None
) -> bool:
    """By measuring, once for a dtype, shapes, number of threads, and with gradients or without.

    Of a batch a power of two is taken, so that one that shrinks step by step is measured a few
    times only. While torch.compile traces, and for subclasses of Tensor, nothing is measured: then
    it is products where there is a gradient.
    """
    tensors = (query, key, value)
    graph = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    if torch.compiler.is_compiling() or any(type(tensor) is not Tensor for tensor in tensors):
        return graph
    kind, dtype = query.device.type, query.dtype
    if torch.is_autocast_enabled(kind) and dtype == torch.float32:
        dtype = torch.get_autocast_dtype(kind)
    count = _measured(query, key)
    few = [tensor[:count] for tensor in tensors]
    if mask is not None and mask.ndim == query.ndim:
        mask = mask[:count]
    shapes = [None if tensor is None else tensor.shape for tensor in (*few, mask)]
    case = (kind, dtype, *shapes, graph, torch.get_num_threads())
    if case not in _chosen:
        _chosen[case] = _measure([*few, mask], scale, graph)
    return _chosen[case]


def _measured(query: Tensor, key: Tensor) -> int:
    """How much of the batch a measurement takes."""
    scores = query[:1].numel() // query.shape[-1] * key.shape[-2]
    most = min(len(query), max(1, MEASURED_SCORES // max(scores, 1)))
    return 1 << (most.bit_length() - 1) if most else 0


def _measure(tensors: list[Tensor | None], scale: float | None, graph: bool) -> bool:
    """Time both in turn, on copies of the tensors: nothing is drawn, and no graph is touched."""
    best = {_products: float("inf"), _fused: float("inf")}
    with torch.inference_mode(False), torch.set_grad_enabled(graph):
        copies = [None if t is None else t.detach().clone() for t in tensors]
        *given, mask = copies
        leaves = [t.requires_grad_(graph) for t in given if t is not None]
        for _ in range(ROUNDS):
            for compute in best:
                started = time.perf_counter()
                out = compute(leaves[0], leaves[1], leaves[2], mask, scale)
                if graph:
                    torch.autograd.grad(out, leaves, out.detach())
                best[compute] = min(best[compute], time.perf_counter() - started)
    return best[_products] < CLEARLY * best[_fused]
