"""Batch normalisation folded into the convolution before it for as long as weights do not change,
and patch embeddings as a matrix product.

In eval mode BN is an affine map of each channel, so a convolution whose output it alone reads can
do it, whatever it pads with: exact but for rounding. Which convolution feeds which BN is found by
running the model's code on `torch.fx` symbols, once for its structure. That freezes what a forward
decides, so a first image is run both ways, and nothing is folded where the logits differ.
"""

import contextlib
import copy
import logging
from collections import Counter
from collections.abc import Hashable
from functools import partial
from types import MethodType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import GraphAppendingTracer
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_weights

from roli_fast.engine.buffers import buffer
from roli_fast.engine.graph import first_line, model_state, say_once

_TF32 = 2.0**-11
"""Rounding of fp32 convolutions on a GPU, by default."""

_ABSENT = object()


class Folding:
    """Folds a model's BN layers and takes them out again.

    Second tensors take the place of convolutions' weights until `clear`, `forward` of a folded BN
    does no more than its activation, and patches are embedded by a matrix product.

    Args:
        model: images -> logits, in eval mode. Its structure is looked at once, its weights at each
            `fill`; what an outer engine folded stays so.
        dtype: of the passes, where it is not the weights'. In fp16 no weights are folded: they may
            come out below what fp16 knows.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype | None) -> None:
        self._model, self._dtype = model, dtype
        self._others: list[tuple[dict[str, Any], str, Any]] = []  # what stood, and will, where
        self._plan: _Plan | None = None

    def fill(self) -> None:
        """Fold whatever can be."""
        kind = next((p.device.type for p in self._model.parameters()), "cpu")
        with torch.inference_mode(False), torch.no_grad():
            plan = None if self._passes(kind) == torch.float16 else _plan_of(self._model)
            for names in plan.pairs if plan else ():
                conv, norm = map(self._model.get_submodule, names)
                if _can_be_folded(conv, norm):
                    self._fold(conv, norm)
        self._plan = plan if self._others else None
        for layer in filter(cuts_patches, self._model.modules()):
            if "forward" not in vars(layer):
                self._put(vars(layer), "forward", MethodType(by_patches, layer))

    def _fold(self, conv: Any, norm: Any) -> None:
        weight, bias = fuse_conv_bn_weights(
            *(conv.weight, conv.bias, norm.running_mean, norm.running_var),
            *(norm.eps, norm.weight, norm.bias),
        )
        for name, value in (("weight", weight), ("bias", bias)):
            second = buffer(conv, name, value, value.dtype)
            second.data.copy_(value)  # data: no graph is told of equal numbers
            self._put(conv._parameters, name, nn.Parameter(second, requires_grad=False))
        left = _activation if _kind(norm) == _WITH_ACTIVATION else _nothing
        self._put(vars(norm), "forward", MethodType(left, norm))

    def _put(self, owner: dict[str, Any], name: str, value: Any) -> None:
        self._others.append((owner, name, owner.get(name, _ABSENT)))
        owner[name] = value

    def _swap(self) -> None:
        for number, (owner, name, other) in enumerate(self._others):
            self._others[number] = owner, name, owner.get(name, _ABSENT)
            if other is _ABSENT:
                del owner[name]
            else:
                owner[name] = other

    def clear(self) -> None:
        """Put back what `fill` replaced."""
        self._swap()
        self._others.clear()

    def check(self, x: Tensor) -> bool:
        """Whether the passes of images `x` (B, ...) are folded as before.

        The first image of a model's first attack is run folded and plain. Where the logits differ
        nothing of this model is folded any more.
        """
        wrong = self._dtype and x.dtype != torch.float32
        if not self._plan or self._plan.compared or len(x) == 0 or wrong:
            return True  # `EnginePasses` tells of a wrong dtype
        folded = self._logits(x[:1].detach())
        self._swap()
        try:
            plain = self._logits(x[:1].detach())
        finally:
            self._swap()
        if self._agree(folded, plain):
            self._plan = _plans[self._model] = self._plan._replace(compared=True)
            return True
        self.clear()
        _plans[self._model], self._plan = self._plan._replace(pairs=[]), None
        _say(self._model, "its forward goes other ways than when it was looked at")
        return False

    def _agree(self, folded: object, plain: object) -> bool:
        """But for the rounding of the passes, which merged low-rank layers have already."""
        if not isinstance(plain, Tensor) or not isinstance(folded, Tensor):
            return True  # which the caller refuses
        dtype = self._passes(plain.device.type) or plain.dtype
        rounding = _TF32 if plain.is_cuda and dtype == torch.float32 else torch.finfo(dtype).eps
        apart = torch.linalg.vector_norm(folded.double() - plain.double())
        return not bool(apart > rounding**0.5 * torch.linalg.vector_norm(plain.double()))

    def _logits(self, x: Tensor) -> object:
        kind = x.device.type
        low = torch.autocast(kind, self._dtype) if self._dtype else contextlib.nullcontext()
        with torch.random.fork_rng([x.device] if x.is_cuda else []), low:
            return self._model(x.clone())

    def _passes(self, kind: str) -> torch.dtype | None:
        """The dtype of the passes, where the engine's or the caller's autocast tells it."""
        if self._dtype is None and torch.is_autocast_enabled(kind):
            return torch.get_autocast_dtype(kind)
        return self._dtype


def _can_be_folded(conv: Any, norm: Any) -> bool:
    """Whether this BN is one affine map of the convolution's channels, and both are themselves."""
    mean, weight = norm.running_mean, conv._parameters.get("weight")
    return (
        (_kind(conv) in _CONVOLUTIONS and _kind(norm) in _NORMS)
        and (_is_plain(conv) and _is_plain(norm) and not norm.training)
        and (mean is not None and mean.numel() == conv.out_channels)
        and type(weight) is nn.Parameter
        and weight.dtype in (torch.float32, torch.float64)
    )


def _nothing(norm: nn.Module, input: Tensor) -> Tensor:
    return input


def _activation(norm: Any, input: Tensor) -> Tensor:
    return norm.act(norm.drop(input))


# By their very type: a subclass may do anything, as one with weight standardisation does. Those of
# timm go by their names: the padding of TensorFlow in front, and an activation behind.
_WITH_ACTIVATION = "timm.layers.norm_act.BatchNormAct2d"
_CONVOLUTIONS = {"torch.nn.modules.conv.Conv2d", "timm.layers.conv2d_same.Conv2dSame"}
_NORMS = {
    "torch.nn.modules.batchnorm.BatchNorm2d",
    "torch.nn.modules.batchnorm.SyncBatchNorm",
    _WITH_ACTIVATION,
}
_WRAPPERS = ("torch.nn.parallel", "torch.distributed", "torch.jit", "torch._dynamo")


def _kind(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _is_plain(module: nn.Module) -> bool:
    """Whether a call of it is a call of its type's `forward`, without hooks."""
    held = vars(module)
    hooks = (value for key, value in held.items() if key.endswith("_hooks") and "state" not in key)
    return not ("forward" in held or held.get("_compiled_call_impl") or any(hooks))


class _Plan(NamedTuple):
    """What to fold in a model, for as long as its forward has the same values to go by.

    Args:
        values: those, see `model_state`.
        pairs: names of each convolution and of the BN that alone reads it.
        compared: whether an image had the same logits folded and plain.
    """

    values: Hashable
    pairs: list[tuple[str, str]]
    compared: bool = False


_plans: "WeakKeyDictionary[nn.Module, _Plan]" = WeakKeyDictionary()


def _plan_of(model: nn.Module) -> _Plan | None:
    """The plan for a model in eval mode; made anew once a module was replaced, or has another
    number or word, as a model with a BN for clean and one for attacked images. None without BN."""
    if all(_kind(module) not in _NORMS for module in model.modules()):
        return None
    (values, _), known = model_state(model)[0], _plans.get(model)
    if known is None or known.values != values:
        known = _plans[model] = _Plan(values, _pairs(model))
    return known


def _say(model: nn.Module, reason: str) -> None:
    say_once(model, f"BN of {type(model).__name__} is not folded: {reason}", logging.INFO)


def _pairs(model: nn.Module) -> list[tuple[str, str]]:
    """What of a model can be folded, by its calls in one forward."""
    kinds = {name: _kind(module) for name, module in model.named_modules()}
    try:
        if any(kind.startswith(_WRAPPERS) for kind in kinds.values()) or "forward" in vars(model):
            raise TypeError("it, or a part of it, is replaced, compiled, scripted or parallel")
        calls = [node for node in _traced(model).nodes if node.op == "call_module"]
    except Exception as error:  # whatever its code raises when it is given a symbol
        _say(model, f"its forward cannot be followed ({first_line(error)})")
        return []
    counts = Counter(node.target for node in calls)
    found = []
    for node in calls:
        before = node.args[0] if len(node.args) == 1 and not node.kwargs else None
        if kinds[str(node.target)] in _NORMS and isinstance(before, fx.Node):
            names = str(before.target), str(node.target)
            alone = [user for user in before.users if not _asks_a_size(user)] == [node]
            if alone and kinds.get(names[0]) in _CONVOLUTIONS and before.op == "call_module":
                if counts[names[0]] == counts[names[1]] == 1:
                    found.append(names)
    return found


def _traced(model: nn.Module) -> fx.Graph:
    """The calls of modules in one forward, and who reads what they return.

    The model's code runs on a copy that shares its tensors; only modules with a BN inside are
    entered, of others the call is noted. `torch.fx.Tracer` is not used: meanwhile it replaces
    `nn.Module.__call__` for the whole process, also for other threads.
    """
    tracer = _Tracer(fx.Graph())

    def call(name: str, *args: Any, **kwargs: Any) -> fx.Proxy:
        return tracer.create_proxy("call_module", name, args, kwargs)

    held = (
        t
        for m in model.modules()
        for t in (*vars(m).values(), *m._parameters.values(), *m._buffers.values())
    )
    twin = copy.deepcopy(model, {id(t): t for t in held if isinstance(t, Tensor)})
    norms = [name for name, module in twin.named_modules() if _kind(module) in _NORMS]
    around = {name[:end] for name in norms for end, letter in enumerate(name) if letter == "."}
    for name, module in twin.named_modules():
        if name and not (name in around and _is_plain(module)):
            for key in [key for key in vars(module) if key.endswith("_hooks")]:
                vars(module)[key].clear()
            vars(module)["forward"] = partial(call, name)
    cuda = {p.device for p in model.parameters() if p.is_cuda}
    with torch.no_grad(), torch.random.fork_rng(list(cuda)):
        found = twin.forward(tracer.create_proxy("placeholder", "x", (), {}))
    tracer.graph.output(tracer.create_arg(found))
    return tracer.graph


class _Tracer(GraphAppendingTracer):
    """Notes operations; constant tensors are of no interest."""

    def create_arg(self, a: Any) -> Any:
        return None if isinstance(a, (Tensor, torch.Generator)) else super().create_arg(a)


_SIZES = {"shape", "ndim", "size", "dim", "numel", "dtype", "device", "requires_grad", "is_cuda"}
"""What may be asked of a tensor besides its values: folding changes none of it."""


def _asks_a_size(node: fx.Node) -> bool:
    if node.op == "call_function" and node.target is getattr:
        return node.args[1] in _SIZES
    return node.op == "call_method" and node.target in _SIZES


_SMALLEST, _CHANNELS = 4, 4
"""Patches of images. Windows of 2 x 2, which cut feature maps, are faster as a convolution."""


def cuts_patches(layer: nn.Module) -> bool:
    """Whether this is a convolution whose windows tile images, as a patch embedding's do."""
    return (
        type(layer) is nn.Conv2d
        and layer.kernel_size == layer.stride
        and min(layer.kernel_size) >= _SMALLEST
        and layer.in_channels <= _CHANNELS
        and layer.padding in ((0, 0), "valid")
        and layer.dilation == (1, 1)
        and layer.groups == 1
    )


def by_patches(layer: nn.Conv2d, input: Tensor) -> Tensor:
    """What the layer's `forward` returns, up to the order of a sum, in the same memory layout.

    The backward of torch 2.11's convolution takes three to six times as long as the product for
    patches of 16 x 16 on the CPU. Other devices keep their convolution.
    """
    x, (p, q) = input, layer.kernel_size
    if x.device.type != "cpu" or x.ndim != 4:
        return nn.Conv2d.forward(layer, x)
    weight = layer.weight
    if torch.is_autocast_enabled("cpu"):
        x = x.to(weight.dtype)  # before the copy, which is shorter then
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    rows, columns = x.shape[2] // p, x.shape[3] // q
    x = x[:, :, : rows * p, : columns * q]
    if last:
        patches = x.permute(0, 2, 3, 1).unflatten(2, (columns, q)).unflatten(1, (rows, p))
        patches, weight = patches.transpose(2, 3), weight.permute(0, 2, 3, 1)
    else:
        patches = x.unflatten(3, (columns, q)).unflatten(2, (rows, p)).permute(0, 2, 4, 1, 3, 5)
    maps = functional.linear(patches.flatten(3), weight.flatten(1), layer.bias).permute(0, 3, 1, 2)
    return maps if last else maps.contiguous()
