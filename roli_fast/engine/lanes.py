"""What functions of torch become in passes in bf16 on the CPU, where something else is faster."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from roli_fast.engine.packed import PackedWeights, can_pack
from roli_fast.engine.recomputing import is_recomputed
from roli_fast.engine.streams import Norms, residual_sum, unbind
from roli_fast.ops import rows


class Lanes:
    """Faster ways for one model's passes.

    Args:
        model: whose passes they are.
        dtype: of the passes; for any but bf16 there is nothing to gain.
        weights: its weights in that dtype, which stay as they are as long as this is used.
    """

    def __init__(
        self, model: Callable[..., Any], dtype: torch.dtype | None, weights: Iterable[Tensor]
    ) -> None:
        self._ways: dict[Callable[..., Any], Callable[..., Any]] = {}
        self._norms = Norms()
        if dtype != torch.bfloat16:
            return
        fixed = [*weights, *_merged(model)]
        fixed = [w for w in fixed if w.is_cpu and w.ndim == 2 and w.dtype == dtype]
        if fixed and can_pack():
            self._ways[functional.linear] = PackedWeights(fixed).linear
        if fixed and rows.usable():
            self._ways[functional.layer_norm] = self._norms.norm
            self._ways |= dict.fromkeys((torch.add, Tensor.add, Tensor.__add__), residual_sum)
            self._ways |= dict.fromkeys((torch.unbind, Tensor.unbind), unbind)

    @contextlib.contextmanager
    def inside(self, x: Tensor) -> Iterator[None]:
        """What a pass of these images runs inside."""
        if not self._ways or not x.is_cpu:
            yield
            return
        watch = self._norms.watch if self._norms.learning else None
        try:
            with Replacing(self._ways, watch):
                yield
        except BaseException:
            self._norms.forget()
            raise
        self._norms.finish()


class Replacing(TorchFunctionMode):
    """Inside `with`, some functions are done by others, which return None where they cannot.

    Args:
        others: a function of torch -> what takes its place, with the same arguments.
        watch: sees every call, (function, arguments, keywords, result).
    """

    def __init__(
        self,
        others: dict[Callable[..., Any], Callable[..., Any]],
        watch: Callable[..., None] | None = None,
    ) -> None:
        super().__init__()
        self._others, self._watch = others, watch

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Every torch function inside `with`."""
        kwargs = kwargs or {}
        if torch.compiler.is_compiling() or is_recomputed():  # which has ways of its own
            return func(*args, **kwargs)
        other = self._others.get(func)
        found = None if other is None else other(*args, **kwargs)
        found = func(*args, **kwargs) if found is None else found
        if self._watch is not None:
            self._watch(func, args, kwargs, found)
        return found


def _merged(model: Callable[..., Any]) -> list[Tensor]:
    """What stands in low-rank layers for weight and update, see `Merging`."""
    modules = model.modules() if isinstance(model, nn.Module) else ()
    found = [getattr(module, "merged", None) for module in modules]
    return [tensor for tensor in found if isinstance(tensor, Tensor)]
