"""Passes in bf16 or fp16, in channels_last, with another attention, through a model that keeps its
own weights and form."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from roli_fast.engine.buffers import buffer
from roli_fast.engine.compiled import compiled_pass, logits_in
from roli_fast.errors import ArgumentTypeError, describe

if TYPE_CHECKING:
    from roli_fast.engine.engine import Engine

NO_VIEW = "view size is not compatible"
"""What torch says of a `view` that joins axes of a map that lies in channels_last."""

FP16_SCALE = 1024.0
"""What gradients are multiplied by on their way through fp16, whose smallest number is 6e-8."""

MOST_TOKENS = 1024
"""Beyond it a matrix of all pairs of tokens takes too much memory."""

_NOTHING = contextlib.nullcontext()

_viewing: "WeakSet[nn.Module]" = WeakSet()
"""Models that asked for a view which maps in channels_last do not have."""


class EnginePasses:
    """A model's passes as an engine asks for them, with weights that are converted once.

    Autocast keeps the converted weights of a training step only, those that require a gradient; a
    frozen network's are converted anew in every pass. Here they are second tensors, which take the
    place of the module's during a call. Maps lie in channels_last until the model asks for a view
    that only contiguous ones have.

    Args:
        model: a module, or a callable, which autocast alone serves.
        engine: how its passes are made.
    """

    def __init__(self, model: Callable[[Tensor], Tensor], engine: "Engine") -> None:
        self.model = model
        self._call = partial(compiled_pass, model, engine.compile) if engine.compile else model
        self._engine, self._dtype = engine, engine.low_precision_dtype
        if not engine.in_channels_last:
            self._convert(torch.preserve_format)
        elif isinstance(model, nn.Module) and model in _viewing:
            self._convert(torch.contiguous_format)
        else:
            self._convert(torch.channels_last)

    def _convert(self, layout: torch.memory_format) -> None:
        self._layout, self._second, self._packed = layout, None, None
        self.weights: list[Tensor] = []
        """The converted weights."""
        if isinstance(self.model, nn.Module):
            self._second = SecondWeights(self.model, self._dtype, layout, folded=self._engine.folds)
            self.weights = self._second.tensors
            packs = (
                self._dtype == torch.bfloat16 and self._engine.compile is not True and can_pack()
            )
            fixed = [*self.weights, *merged_in(self.model)] if packs else []
            fixed = [w for w in fixed if w.is_cpu and w.ndim == 2 and w.dtype == torch.bfloat16]
            self._packed = PackedWeights(fixed) if fixed else None

    def __call__(self, x: Tensor) -> Tensor:
        """Logits, in fp32 where the passes are in low precision.

        Raises:
            ArgumentTypeError: images that are not fp32, for passes in low precision.
        """
        if self._dtype is None:
            return self._logits(x)
        if x.dtype != torch.float32:
            fix = "Give x and the model in fp32, or an Engine without a dtype."
            raise ArgumentTypeError(describe("x", "fp32 images", x.dtype, fix))
        scaled = self._dtype == torch.float16
        if scaled and torch.is_grad_enabled() and x.requires_grad:
            x = x.view_as(x)
            x.register_hook(lambda grad: grad / FP16_SCALE)
        logits = logits_in(self._logits(x))
        if not isinstance(logits, Tensor):
            return logits
        logits = logits.float()
        if scaled and logits.requires_grad:
            logits.register_hook(lambda grad: grad * FP16_SCALE)
        return logits

    def _logits(self, x: Tensor) -> Tensor:
        """What the model returns; where it has no view of channels_last, of contiguous maps."""
        try:
            return self._once(x)
        except RuntimeError as error:
            if self._layout != torch.channels_last or NO_VIEW not in str(error):
                raise
        if isinstance(self.model, nn.Module):
            _viewing.add(self.model)
        self._convert(torch.contiguous_format)  # out here, where no error holds the first maps
        return self._once(x)

    def _once(self, x: Tensor) -> Tensor:
        if x.ndim == 4 and self._layout != torch.preserve_format:
            x = x.contiguous(memory_format=self._layout)
        packed, way = self._packed if x.is_cpu else None, self._engine.attention
        with (
            surroundings(x.device.type, self._dtype, way, cache=False, packed=packed),
            self._second.in_place() if self._second else _NOTHING,
        ):
            return self._call(x)


def merged_in(model: nn.Module) -> Iterator[Tensor]:
    """What stands in low-rank layers for weight and update, see `engine.merging`."""
    found = (vars(module).get("merged") for module in model.modules())
    return (tensor for tensor in found if isinstance(tensor, Tensor))


_CONVERTED = (nn.Linear, _ConvNd, nn.MultiheadAttention)
"""Modules whose weights autocast would convert at each call, low-rank layers among them. All else
stays as it is: normalisation has few weights, and its kernels take both dtypes; and what a model
derives from a parameter of its own, and keeps in eval mode, must outlive the passes in fp32."""


class SecondWeights:
    """The weights of linear layers and convolutions, converted once; tied weights stay tied.

    `functional_call` would do that too, but leaves a module that has two names with the second
    tensors.

    Args:
        model: whose weights they are.
        dtype: of the second tensors, which only fp32 weights have; None keeps each weight's.
        layout: of those of two-dimensional convolutions.
        folded: whether the model is, for an engine inside another one that has not folded it.
    """

    def __init__(
        self,
        model: nn.Module,
        dtype: torch.dtype | None,
        layout: torch.memory_format = torch.preserve_format,
        *,
        folded: bool = False,
    ) -> None:
        self._places: list[tuple[dict[str, nn.Parameter | None], str, nn.Parameter]] = []
        self._second: dict[nn.Parameter, nn.Parameter] = {}
        with torch.inference_mode(False), torch.no_grad():
            for module in model.modules():
                for name, own in module._parameters.items():
                    if own is None or not isinstance(module, _CONVERTED):
                        continue
                    # a hook computes the weight from `weight_orig` of spectral_norm and pruning,
                    # or `weight_g` and `weight_v` of weight_norm, in fp32 as its buffers are
                    if name.rpartition("_")[0] in module.__dict__:
                        continue
                    ordered = own.ndim == 4 and layout != torch.preserve_format
                    if not (own.dtype == torch.float32 if dtype else ordered):
                        continue
                    self._places.append((module._parameters, name, own))
                    if own not in self._second:
                        form = dtype or own.dtype, layout if ordered else torch.preserve_format
                        title = f"{'folded' if folded else 'plain'} {name}"
                        second = buffer(module, title, own, *form)
                        second.data.copy_(own)  # data: no graph is told of equal numbers
                        self._second[own] = nn.Parameter(second, requires_grad=False)

    @property
    def tensors(self) -> list[Tensor]:
        """The second weights."""
        return list(self._second.values())

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The second weights in the place of the modules' own."""
        try:
            for table, name, own in self._places:
                table[name] = self._second[own]
            yield
        finally:
            for table, name, own in self._places:
                table[name] = own


@contextlib.contextmanager
def surroundings(
    kind: str,
    dtype: torch.dtype | None,
    attention: str,
    *,
    cache: bool,
    packed: "PackedWeights | None" = None,
) -> Iterator[None]:
    """What passes on devices of this kind run inside: autocast to `dtype`, and faster functions.

    Args:
        kind: "cpu" or "cuda".
        dtype: torch.bfloat16 or torch.float16; None leaves the model's own.
        attention: "auto" takes products for gradients in low precision on the CPU.
        cache: whether a weight that requires a gradient is converted once for all passes inside.
        packed: linear layers' weights.
    """
    products = attention == "products"
    products_back = products or (attention == "auto" and dtype is not None and kind == "cpu")
    autocast = torch.autocast(kind, dtype, cache_enabled=cache) if dtype else _NOTHING
    faster = Faster(products, products_back, packed) if products_back or packed else _NOTHING
    with autocast, faster:
        yield


class Faster(TorchFunctionMode):
    """Inside `with`, some of torch's functions are done in a faster way where they can be.

    Args:
        products: attention is softmax(q k^T) v in three operations.
        products_back: it is where a gradient is asked for.
        packed: linear layers with these weights.
    """

    def __init__(
        self, products: bool, products_back: bool, packed: "PackedWeights | None" = None
    ) -> None:
        super().__init__()
        self._ways: dict[Callable[..., Any], Callable[..., Tensor | None]] = {}
        if products_back:
            way = partial(attention_products, forward=products)
            self._ways[functional.scaled_dot_product_attention] = way
        if packed:
            self._ways[functional.linear] = packed.linear

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Every torch function inside `with`."""
        way, kwargs = self._ways.get(func), kwargs or {}
        found = None if way is None or is_recomputed() else way(*args, **kwargs)
        return func(*args, **kwargs) if found is None else found


def attention_products(  # noqa: PLR0913 - the signature of torch's
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    forward: bool = True,
) -> Tensor | None:
    """softmax(scale q k^T + mask) v, or None where torch's kernel has to do it.

    The backward pass of torch 2.11's fused kernel takes 1.2 (1024 tokens) to 9 times (17 tokens) as
    long in bf16 on a CPU. A forward alone is quicker fused: with `forward` False it stays so.
    """
    masked = attn_mask is not None and not attn_mask.is_floating_point()
    if masked or dropout_p or is_causal or enable_gqa or key.shape[-2] > MOST_TOKENS:
        return None
    if query.ndim < 3 or not query.shape[:-2] == key.shape[:-2] == value.shape[:-2]:
        return None  # two-dimensional, or broadcast
    graph = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
    if not forward and not graph:
        return None
    factor, lead = query.shape[-1] ** -0.5 if scale is None else scale, query.shape[:-2]
    q, k, v = (tensor.flatten(0, -3) for tensor in (query, key, value))
    nothing = q.new_empty(1).expand(len(q), q.shape[1], k.shape[1])
    # the product applies the scale itself, which saves a pass over the queries
    scores = torch.baddbmm(nothing, q, k.transpose(1, 2), beta=0, alpha=factor)
    if attn_mask is not None:
        scores = (scores.unflatten(0, lead) + attn_mask.to(scores.dtype)).flatten(0, -3)
    return (torch.softmax(scores, dim=-1) @ v).unflatten(0, lead)


def is_recomputed() -> bool:
    """Whether what a forward saves now goes through hooks, as in `torch.utils.checkpoint`.

    The second forward of such a block runs outside of what surrounds a model's passes, by torch's
    own functions, and has to save the same tensors as the first: which then takes these too.
    """
    if torch.compiler.is_compiling():  # which sees to this itself, and could not follow
        return False
    top = getattr(getattr(torch._C, "_autograd", None), "_top_saved_tensors_default_hooks", None)
    return top is not None and top(False) is not None


def can_pack() -> bool:
    """Whether this torch and this CPU have products with weights that are laid out beforehand."""
    ops = torch.ops.mkldnn
    if not hasattr(ops, "_linear_pointwise") or not hasattr(ops, "_reorder_linear_weight"):
        return False
    return torch.backends.mkldnn.is_available() and ops._is_mkldnn_bf16_supported()


class PackedWeights:
    """Linear layers by oneDNN with weights that it laid out beforehand as the matrix unit reads.

    `functional.linear` and its backward pass lay the weight out anew at every call, which takes a
    third to a half of a product's time (1576 rows by 384 to 1536 columns), 15 to 22 % of a step on
    a ViT-S. Weights that do not change are laid out at their first use, for either direction; both
    copies are freed with this.

    Args:
        weights: bf16 matrices (out, in) on the CPU that do not change and outlive this.
    """

    def __init__(self, weights: Iterable[Tensor]) -> None:
        self._weights = {id(weight): weight for weight in weights}
        self._laid_out: dict[tuple[int, bool], Tensor] = {}

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
        """What `functional.linear` gives under autocast; None where that has to do it."""
        if id(weight) not in self._weights or x.ndim < 2 or x.numel() == 0 or not x.is_cpu:
            return None
        if not x.is_floating_point() or (bias is not None and bias.requires_grad):
            return None
        if torch.compiler.is_compiling():
            return None
        bias = None if bias is None else bias.to(torch.bfloat16)
        found = _Product.apply(x.to(torch.bfloat16), self, id(weight), bias)
        assert isinstance(found, Tensor)
        return found

    def product(self, x: Tensor, weight: int, bias: Tensor | None, *, back: bool) -> Tensor:
        """x W^T + b, or x W, by the id of a weight."""
        found = self._laid_out.get((weight, back))
        if found is None:
            with torch.inference_mode(False), torch.no_grad():
                matrix = self._weights[weight].detach()
                matrix = (matrix.t() if back else matrix).contiguous()
                found = torch.ops.mkldnn._reorder_linear_weight(matrix)
            self._laid_out[weight, back] = found
        return torch.ops.mkldnn._linear_pointwise(x.contiguous(), found, bias, "none", [], "")


class _Product(torch.autograd.Function):
    """x W^T + b, with the gradient of x alone."""

    @staticmethod
    def forward(
        context: Any, x: Tensor, packed: PackedWeights, weight: int, bias: Tensor | None
    ) -> Tensor:
        context.packed, context.weight = packed, weight
        return packed.product(x, weight, bias, back=False)

    @staticmethod
    @once_differentiable
    def backward(context: Any, grad: Tensor) -> Any:  # pyright: ignore
        grad_x = context.packed.product(grad, context.weight, None, back=True)
        return grad_x, None, None, None
