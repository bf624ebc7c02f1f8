"""Passes in bf16 or fp16, in channels_last, with another attention, through a model that keeps its
own weights and form."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from roli_fast.engine.compiled import CompiledPasses
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


class EnginePasses:
    """A model's passes as an engine asks for them, with weights that are converted once.

    Autocast keeps the converted weights of a training step only, those that require a gradient; a
    frozen network's are converted anew in every pass. Here they are second tensors, which take the
    place of the module's during a call. Maps lie in channels_last until the model asks for a view
    that only contiguous ones have.

    Args:
        model: a module, or a callable, which autocast alone serves.
        engine: how its passes are made.
        keep: converted weights stay where they are from one use to the next, for recordings.
    """

    def __init__(
        self, model: Callable[[Tensor], Tensor], engine: "Engine", *, keep: bool = False
    ) -> None:
        self.model = model
        self._model = CompiledPasses(model) if engine.compile else model
        self._dtype, self._attention = engine.low_precision_dtype, engine.attention
        last = engine.in_channels_last
        self._layout = torch.channels_last if last else torch.preserve_format
        self._weights: SecondWeights | None = None
        if isinstance(model, nn.Module) and (self._dtype or last):
            make = SecondWeights.kept if keep else SecondWeights
            self._weights = make(model, self._dtype, channels_last=last)
        self._compiled = engine.compile
        self._packed = self._pack()

    @property
    def weights(self) -> list[Tensor]:
        """The converted weights."""
        return self._weights.tensors if self._weights else []

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
        logits = self._logits(x)
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
        self._layout = torch.contiguous_format
        if self._weights is not None:  # out here, where the error no longer holds the first maps
            self._weights.make_contiguous()
            self._packed = self._pack()
        return self._once(x)

    def _once(self, x: Tensor) -> Tensor:
        if x.ndim == 4 and self._layout != torch.preserve_format:
            x = x.contiguous(memory_format=self._layout)
        packed = self._packed if x.is_cpu else None
        with (
            surroundings(x.device.type, self._dtype, self._attention, cache=False, packed=packed),
            self._weights.in_place() if self._weights else _NOTHING,
        ):
            return self._model(x)

    def _pack(self) -> "PackedWeights | None":
        """Of linear layers in bf16 on the CPU; a compiled model packs its own."""
        if self._compiled or self._dtype != torch.bfloat16 or not can_pack():
            return None
        modules = self._model.modules() if isinstance(self._model, nn.Module) else ()
        # what stands in low-rank layers for weight and update, see `Merging`
        merged = [getattr(module, "merged", None) for module in modules]
        fixed = [w for w in (*self.weights, *merged) if isinstance(w, Tensor)]
        fixed = [w for w in fixed if w.is_cpu and w.ndim == 2 and w.dtype == torch.bfloat16]
        return PackedWeights(fixed) if fixed else None


_CONVERTED = (nn.Linear, _ConvNd, nn.MultiheadAttention)
"""Modules whose weights autocast would convert at each call, low-rank layers among them. All else
stays as it is: normalisation has few weights, and its kernels take both dtypes; and what a model
derives from a parameter of its own, and keeps in eval mode, must outlive the passes in fp32."""


class _Weight(NamedTuple):
    """A weight, and the table and name by which its module keeps it."""

    table: dict[str, nn.Parameter | None]
    name: str
    own: nn.Parameter


class SecondWeights:
    """The weights of linear layers and convolutions, converted once; tied weights stay tied.

    `functional_call` would do that too, but leaves a module that has two names with the second
    tensors.

    Args:
        model: whose weights they are.
        dtype: of the second tensors, which only fp32 weights have; None keeps each weight's.
        channels_last: whether those of two-dimensional convolutions lie in channels_last.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype | None, *, channels_last: bool) -> None:
        self._form = dtype, channels_last
        self._weights = list(self._chosen(model))
        self._second: dict[nn.Parameter, nn.Parameter] = {}
        with torch.inference_mode(False), torch.no_grad():
            for own in {weight.own: None for weight in self._weights}:
                maps = channels_last and own.ndim == 4
                layout = torch.channels_last if maps else torch.preserve_format
                second = own.detach().to(dtype or own.dtype, memory_format=layout, copy=True)
                self._second[own] = nn.Parameter(second, requires_grad=False)

    def _chosen(self, model: nn.Module) -> Iterator[_Weight]:
        """Weights that have another form."""
        dtype, channels_last = self._form
        for module in model.modules():
            if not isinstance(module, _CONVERTED):
                continue
            for name, own in module._parameters.items():
                # a hook computes the weight from `weight_orig` of spectral_norm and pruning, or
                # `weight_g` and `weight_v` of weight_norm, in fp32 as its buffers are
                if own is None or name.rpartition("_")[0] in module.__dict__:
                    continue
                if own.dtype == torch.float32 if dtype else channels_last and own.ndim == 4:
                    yield _Weight(module._parameters, name, own)

    @staticmethod
    def kept(
        model: nn.Module, dtype: torch.dtype | None, *, channels_last: bool
    ) -> "SecondWeights":
        """Those of the last time, refilled where they lie, as recordings read them there."""
        mine = kept_weights.setdefault(model, {})
        found = mine.get((dtype, channels_last))
        if found is None or not found._refill(model):
            found = mine[dtype, channels_last] = SecondWeights(
                model, dtype, channels_last=channels_last
            )
        return found

    def _refill(self, model: nn.Module) -> bool:
        """Convert again, in place; False where the model has other weights by now."""
        now, before = (
            [(id(weight.table), weight.name, id(weight.own)) for weight in weights]
            for weights in (self._chosen(model), self._weights)
        )
        pairs = self._second.items()
        if now != before or any((a.shape, a.device) != (b.shape, b.device) for a, b in pairs):
            return False
        with torch.inference_mode(False), torch.no_grad():
            for own, second in pairs:
                second.data.copy_(own)  # data: the graph of a pass is not told of equal numbers
        return True

    @property
    def tensors(self) -> list[Tensor]:
        """The second weights."""
        return list(self._second.values())

    def make_contiguous(self) -> None:
        """For all later calls; new tensors, as the graph of an earlier one holds the old."""
        with torch.inference_mode(False), torch.no_grad():
            self._second = {
                own: nn.Parameter(second.contiguous(), requires_grad=False)
                for own, second in self._second.items()
            }

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The second weights in the place of the modules' own."""
        second = self._second
        try:
            for table, name, own in self._weights:
                table[name] = second[own]
            yield
        finally:
            for table, name, own in self._weights:
                table[name] = own


_Form = tuple[torch.dtype | None, bool]
kept_weights: "WeakKeyDictionary[nn.Module, dict[_Form, SecondWeights]]" = WeakKeyDictionary()
"""What `SecondWeights.kept` returned, by dtype and layout, as long as the model."""


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
        self._products, self._products_back, self._packed = products, products_back, packed

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Every torch function inside `with`."""
        kwargs, found = kwargs or {}, None
        if func is functional.linear and self._packed:
            if not (torch.compiler.is_compiling() or is_recomputed()):
                found = self._packed.linear(*args, **kwargs)
        elif func is functional.scaled_dot_product_attention and self._products_back:
            if not is_recomputed():
                found = attention_products(*args, **kwargs, forward=self._products)
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
        self._packed = {id(weight): _Packed(weight) for weight in weights}

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
        """What `functional.linear` gives under autocast; None where that has to do it."""
        packed = self._packed.get(id(weight))
        if packed is None or x.ndim < 2 or x.numel() == 0 or not x.is_cpu:
            return None
        if not x.is_floating_point() or (bias is not None and bias.requires_grad):
            return None
        bias = None if bias is None else bias.to(torch.bfloat16)
        found = _Product.apply(x.to(torch.bfloat16), packed, bias)
        assert isinstance(found, Tensor)
        return found


class _Packed:
    """One weight, and its two layouts once they are wanted."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight  # its id stays its own
        self._ways: dict[bool, Tensor] = {}

    def way(self, back: bool) -> Tensor:
        """The weight as x W^T takes it; `back`: as dy W does."""
        found = self._ways.get(back)
        if found is None:
            with torch.inference_mode(False), torch.no_grad():
                matrix = self.weight.detach()
                matrix = matrix.t().contiguous() if back else matrix.contiguous()
                found = torch.ops.mkldnn._reorder_linear_weight(matrix)
            self._ways[back] = found
        return found


class _Product(torch.autograd.Function):
    """x W^T + b, with the gradient of x alone."""

    @staticmethod
    def forward(context: Any, x: Tensor, packed: _Packed, bias: Tensor | None) -> Tensor:
        context.packed = packed
        return _times(x, packed.way(False), bias)

    @staticmethod
    @once_differentiable
    def backward(context: Any, grad: Tensor) -> Any:  # pyright: ignore
        return _times(grad, context.packed.way(True), None), None, None


def _times(x: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x.contiguous(), matrix, bias, "none", [], "")
