"""Batch normalisation folded into the layer before it for as long as weights do not change.

In eval mode BN is an affine map of each channel, so a layer whose output it alone reads can do it,
whatever it pads with: exact in real arithmetic, and in fp32 but for rounding. Of a normalisation in
front of the network, (x - mean) / std, the division goes into the first convolution. The
subtraction stays: a border of zeros is one only after it, images about zero lose less in bf16 than
those in [0, 1], and its backward does nothing.

Which layer feeds which is found by running the model's code on `torch.fx` symbols, once for its
structure. That freezes what a forward decides, so each attack runs its first image both ways, and
folds nothing where the logits differ.
"""

import contextlib
import copy
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from types import MethodType
from typing import Any, NamedTuple, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate
from torch.fx.proxy import GraphAppendingTracer
from torch.nn import functional
from torch.nn.modules.module import _has_any_global_hook
from torch.nn.utils.fusion import fuse_conv_bn_weights

from roli_fast.engine.graph import first_line, say_once, values_of
from roli_fast.errors import RoliFastError
from roli_fast.threat import values_are_known


@runtime_checkable
class Foldable(Protocol):
    """A module (x - mean) / std per channel that can leave the division to the layer behind it.

    While `folded` is true, `forward` only subtracts; False is the normal state.
    """

    folded: bool

    def fold_request(self) -> Tensor | None:
        """The divisors, C numbers, now; None if this module cannot be folded as it is."""
        ...


_TF32 = 2.0**-11
"""Rounding of fp32 convolutions on a GPU, by default."""

_ABSENT = object()


class Folding:
    """Folds a model's BN layers and input scaling, and takes both out again.

    Second tensors take the place of the layers' weights until `clear`, `forward` of a folded BN
    does no more than its activation, and patches are embedded by a matrix product.

    Args:
        model: images -> logits, in eval mode. Its structure is looked at once, its weights at each
            `fill`; what an outer engine folded stays so.
        dtype: of the passes, where it is not the weights'. In fp16 no weights are folded: they may
            come out below what fp16 knows.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype | None) -> None:
        self._model, self._dtype = model, dtype
        self._undo: list[tuple[dict[str, Any], str, Any]] = []
        self._compared: set[bool] = set()
        self._folded = False

    def fill(self) -> None:
        """Fold whatever can be."""
        plan = _plan_of(self._model)
        kind = next((p.device.type for p in self._model.parameters()), "cpu")
        with torch.inference_mode(False), torch.no_grad():
            for link in () if self._passes(kind) == torch.float16 else plan.links:
                self._fold(link)
        self._folded = bool(self._undo)
        for name in plan.patches:
            layer = self._model.get_submodule(name)
            if "forward" not in vars(layer):
                self._put(vars(layer), "forward", MethodType(by_patches, layer))

    def _fold(self, link: "_Link") -> None:
        """What of a link can be folded now."""
        layer: Any = self._model.get_submodule(link.layer)
        norm: Any = self._model.get_submodule(link.norm) if link.norm else None
        scaling: Any = self._model.get_submodule(link.scaling) if link.scaling else None
        weight, bias, divisor = layer._parameters.get("weight"), layer.bias, None
        if type(weight) is not nn.Parameter or weight is buffers.get(layer, {}).get("weight"):
            return  # another's, or ours already
        if norm is not None and not _is_fixed(norm, layer):
            norm = None
        if scaling is not None and not scaling.folded and isinstance(layer, nn.Conv2d):
            divisor = scaling.fold_request()
        if divisor is not None and (layer.groups > 1 or layer.in_channels != divisor.numel()):
            divisor = None
        if weight.dtype not in (torch.float32, torch.float64) or (norm is None and divisor is None):
            return
        made: Any = weight
        if norm is not None:
            turned = isinstance(layer, (nn.ConvTranspose2d, nn.ConvTranspose3d))
            mean, var, own = norm.running_mean, norm.running_var, (norm.weight, norm.bias)
            # of a linear layer too, whose weight has no further axes
            made, bias = fuse_conv_bn_weights(made, bias, mean, var, norm.eps, *own, turned)
            self._put(layer._parameters, "bias", _second(layer, "bias", bias))
            self._put(vars(norm), "forward", MethodType(_left_over(norm), norm))
        if divisor is not None:
            made = made / divisor.to(made.dtype).view(1, -1, 1, 1)
            self._put(vars(scaling), "folded", True)
        self._put(layer._parameters, "weight", _second(layer, "weight", made))

    def check(self, x: Tensor) -> bool:
        """Whether the passes of images `x` (B, ...) are folded as before.

        The first image is run folded and plain, once with gradients and once without. Where the
        logits differ nothing of this model is folded any more.
        """
        mode, wrong = torch.is_grad_enabled(), self._dtype and x.dtype != torch.float32
        if not self._folded or mode in self._compared or len(x) == 0 or wrong:
            return True  # `EnginePasses` tells of a wrong dtype
        if values_are_known():  # it would wait for the device, each update of a training
            return True
        self._compared.add(mode)
        if self._agrees(x[:1].detach()):
            return True
        self.clear()
        self._folded = False
        _plans[self._model] = _plan_of(self._model)._replace(links=[])
        _say(self._model, "its forward goes other ways than when it was looked at")
        return False

    def _agrees(self, x: Tensor) -> bool:
        """In the precision of the passes, which merged low-rank layers are in already."""
        folded = self._logits(x)
        put = [(owner, name, owner[name]) for owner, name, _ in self._undo]
        undo = list(self._undo)
        self.clear()
        try:
            plain = self._logits(x)
        finally:
            for owner, name, value in put:
                owner[name] = value
            self._undo = undo
        if not isinstance(plain, Tensor) or not isinstance(folded, Tensor):
            return True  # which the caller refuses
        dtype = self._passes(x.device.type) or plain.dtype
        rounding = _TF32 if x.is_cuda and dtype == torch.float32 else torch.finfo(dtype).eps
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

    def _put(self, owner: dict[str, Any], name: str, value: Any) -> None:
        self._undo.append((owner, name, owner.get(name, _ABSENT)))
        owner[name] = value

    def clear(self) -> None:
        """Put back what `fill` replaced."""
        while self._undo:
            owner, name, value = self._undo.pop()
            if value is _ABSENT:
                del owner[name]
            else:
                owner[name] = value


buffers: "WeakKeyDictionary[nn.Module, dict[str, nn.Parameter]]" = WeakKeyDictionary()
"""Folded weights, kept as long as the module and filled anew for each engine, as merged ones."""


def _second(layer: nn.Module, name: str, value: Tensor) -> nn.Parameter:
    """The layer's second tensor, where it was the last time if it still fits."""
    held = buffers.setdefault(layer, {})
    found = held.get(name)
    form = (value.shape, value.dtype, value.device, value.stride())
    if found is None or (found.shape, found.dtype, found.device, found.stride()) != form:
        found = held[name] = nn.Parameter(torch.empty_like(value), requires_grad=False)
    found.data.copy_(value)
    return found


def _is_fixed(norm: Any, layer: Any) -> bool:
    """Whether this BN is one affine map, for as many channels as the layer has."""
    if getattr(layer, "transposed", False) and layer.groups > 1:
        return False  # whose weights torch's fusion takes for those of one group
    channels = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    mean, var = norm.running_mean, norm.running_var
    known = mean is not None and var is not None and mean.numel() == channels
    return known and not norm.training and "forward" not in vars(norm)


def _left_over(norm: nn.Module) -> Callable[[Any, Tensor], Tensor]:
    """What the `forward` of a folded BN still does."""
    kind = _kind(norm)
    return _activation if kind == _WITH_ACTIVATION else _rows if kind == _OF_ROWS else _nothing


def _nothing(norm: nn.Module, input: Tensor) -> Tensor:
    return input


def _activation(norm: Any, input: Tensor) -> Tensor:
    return norm.act(norm.drop(input))


def _rows(norm: nn.Module, input: Tensor) -> Tensor:
    if input.ndim != 2:  # the channels of (B, L, C) are L for BN, and C for the layer before it
        shape = tuple(input.shape)
        raise RoliFastError(f"A BN of {shape} behind a linear layer is not folded: set fold=False.")
    return input


# By their very type: a subclass may do anything, as one with weight standardisation does. Those of
# timm go by their names: the padding of TensorFlow in front, and an activation behind.
_LINEAR = "torch.nn.modules.linear.Linear"
_CONVOLUTIONS = {
    *(f"torch.nn.modules.conv.Conv{n}d" for n in (2, 3)),
    *(f"torch.nn.modules.conv.ConvTranspose{n}d" for n in (2, 3)),
    "timm.layers.conv2d_same.Conv2dSame",
}
_OF_ROWS = "torch.nn.modules.batchnorm.BatchNorm1d"
_WITH_ACTIVATION = "timm.layers.norm_act.BatchNormAct2d"
_NORMS = {
    _OF_ROWS,
    *(f"torch.nn.modules.batchnorm.BatchNorm{n}d" for n in (2, 3)),
    "torch.nn.modules.batchnorm.SyncBatchNorm",
    _WITH_ACTIVATION,
}
_WRAPPERS = ("torch.nn.parallel", "torch.distributed", "torch.jit", "torch._dynamo")


_WAYS = ("forward", "forward_pre", "backward", "backward_pre")


def _kind(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


class _Link(NamedTuple):
    """Names of a layer, of the BN that alone reads it, and of the `Foldable` it alone reads."""

    layer: str
    norm: str | None
    scaling: str | None


class _Plan(NamedTuple):
    """What to fold in a model, for as long as its forward has the same values to go by."""

    values: Hashable
    links: list[_Link]
    patches: list[str]


_plans: "WeakKeyDictionary[nn.Module, _Plan]" = WeakKeyDictionary()


def _plan_of(model: nn.Module) -> _Plan:
    """The plan for a model in eval mode; made anew once a module was replaced, got a hook, or has
    another number or word, as a model with a BN for clean and one for attacked images."""
    values, known = values_of(model)[0], _plans.get(model)
    if known is None or known.values != values:
        patches = [name for name, module in model.named_modules() if cuts_patches(module)]
        known = _plans[model] = _Plan(values, _links(model), patches)
    return known


def _say(model: nn.Module, reason: str) -> None:
    say_once(model, f"BN of {type(model).__name__} is not folded: {reason}", logging.INFO)


def _links(model: nn.Module) -> list[_Link]:
    closed = _closed(model)
    free: dict[str, Any] = {
        name: module for name, module in model.named_modules() if not closed & {name, *_above(name)}
    }
    norms = {name for name, module in free.items() if _kind(module) in _NORMS}
    scalings = {name for name, module in free.items() if hasattr(type(module), "fold_request")}
    layers = _layers(free, norms, scalings)
    if not layers or not norms | scalings:
        return []
    try:
        if any(_kind(module).startswith(_WRAPPERS) for module in model.modules()):
            raise TypeError("a part of it is compiled, scripted or parallel")
        if "forward" in vars(model) or _has_any_global_hook():
            raise TypeError("it is replaced, or hooks are on all modules")
        sources = _sources(model, layers | norms | scalings)
    except Exception as error:  # whatever its code raises when it is given a symbol
        _say(model, f"its forward cannot be followed ({first_line(error)})")
        return []
    behind = {sources.get(norm): norm for norm in norms}
    links = []
    for layer in sorted(layers):
        scaling, norm = sources.get(layer), behind.get(layer)
        if norm and (_kind(free[norm]) == _OF_ROWS) != (_kind(free[layer]) == _LINEAR):
            norm = None
        if norm or scaling in scalings:
            links.append(_Link(layer, norm, scaling if scaling in scalings else None))
    return links


def _layers(free: Mapping[str, Any], norms: set[str], scalings: set[str]) -> set[str]:
    """The layers worth looking at: what lies around others need not be followed."""
    requests = [free[name].fold_request() for name in scalings]
    channels = {request.numel() for request in requests if request is not None}
    kinds = {_LINEAR} if any(_kind(free[name]) == _OF_ROWS for name in norms) else set()
    return {
        name
        for name, module in free.items()
        if _kind(module) in kinds
        or (_kind(module) in _CONVOLUTIONS and (norms or module.in_channels in channels))
    }


def _above(name: str) -> set[str]:
    """Names of the modules around one, but for the model itself."""
    return {name[:i] for i, letter in enumerate(name) if letter == "."}


def _closed(model: nn.Module) -> set[str]:
    """Modules that do more than their type says, or have two names, by either of which someone may
    call them. A hook on the whole model sees images and logits alone."""
    names = list(model.named_modules(remove_duplicate=False))
    counts = Counter(id(module) for _, module in names)
    return {name for name, m in names if counts[id(m)] > 1 or (name and not _is_plain(m))}


def _is_plain(module: nn.Module) -> bool:
    """Whether a call of it is a call of its type's `forward`, or of ours."""
    held = vars(module)
    hooks = any(
        value for key, value in held.items() if key.endswith("_hooks") and "state" not in key
    )
    ours = (_nothing, _activation, _rows, by_patches)
    replaced = "forward" in held and getattr(held["forward"], "__func__", None) not in ours
    return not (hooks or replaced or held.get("_compiled_call_impl") is not None)


def _sources(model: nn.Module, parts: set[str]) -> dict[str, str]:
    """Part -> the part whose output goes into it and nowhere else, where each is called once."""
    graph = _traced(model, parts)
    calls: dict[str, list[fx.Node]] = defaultdict(list)
    for node in graph.nodes:
        if node.op == "call_module":
            calls[str(node.target)].append(node)
    read = {str(n.target) for n in graph.nodes if n.op == "get_attr" and n.users}
    touched = {name.rpartition(".")[0] for name in read}
    once = {name: some[0] for name, some in calls.items() if len(some) == 1}
    sources = {}
    for name in once.keys() & parts - touched:
        node = once[name]
        before = node.args[0] if len(node.args) == 1 and not node.kwargs else None
        source = str(before.target) if isinstance(before, fx.Node) else ""
        if source in parts - touched and once.get(source) is before:
            if [user for user in before.users if not _asks_a_size(user)] == [node]:  # type: ignore[union-attr]
                sources[name] = source
    return sources


def _traced(model: nn.Module, parts: set[str]) -> fx.Graph:
    """The calls of modules in one forward, and who reads what they return.

    The model's code runs on a copy without weights. `torch.fx.Tracer` is not used: meanwhile it
    replaces `nn.Module.__call__` for the whole process, also for other threads.

    Args:
        model: images -> logits, in eval mode.
        parts: names of the modules that matter; of all others only those around them are entered.
    """
    tracer = _Tracer(fx.Graph())

    def call(name: str, *args: Any, **kwargs: Any) -> fx.Proxy:
        return tracer.create_proxy("call_module", name, args, kwargs)

    held = (t for m in model.modules() for t in (*vars(m).values(), *m._parameters.values()))
    twin = copy.deepcopy(model, {id(t): t for t in held if isinstance(t, Tensor)})
    around = {"", *(name for part in parts for name in _above(part))}
    kept = []
    for name, module in list(twin.named_modules()):
        if name in parts | around:
            _hide(tracer, name, module)
        if name in parts or not (name in around or isinstance(module, nn.Identity)):
            for key in [key for key in vars(module) if key.endswith("_hooks")]:
                vars(module)[key] = type(vars(module)[key])()
            vars(module)["forward"] = partial(call, name)
            if name not in parts:
                _check_registry(name, module)
        if name not in parts:
            kept.append(vars(module))
    cuda = {p.device for p in model.parameters() if p.is_cuda}
    with torch.no_grad(), torch.random.fork_rng(list(cuda)):
        found = twin.forward(tracer.create_proxy("placeholder", "x", (), {}))
    tracer.graph.output(tracer.create_arg([found, *_symbols(kept)]))
    return tracer.graph


class _Symbol(fx.Proxy):
    """Stands for a tensor, also for code that asks `isinstance(x, Tensor)`."""

    @property
    def __class__(self) -> type:  # type: ignore[override]
        return Tensor


class _Tracer(GraphAppendingTracer):
    """Notes operations; constant tensors are of no interest."""

    def create_arg(self, a: Any) -> Any:
        if type(a) is _Symbol:
            return a.node
        return None if isinstance(a, (Tensor, torch.Generator)) else super().create_arg(a)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return fx.Proxy(node, self) if _asks_a_size(node) else _Symbol(node, self)


_SIZES = {"shape", "ndim", "size", "dim", "numel", "dtype", "device", "requires_grad", "is_cuda"}
"""What may be asked of a tensor besides its values: folding changes none of it."""


def _asks_a_size(node: fx.Node) -> bool:
    if node.op == "call_function" and node.target is getattr:
        return node.args[1] in _SIZES
    return node.op == "call_method" and node.target in _SIZES


def _hide(tracer: _Tracer, name: str, module: nn.Module) -> None:
    """Symbols for a module's own tensors, so that code which reads a layer's itself is noticed."""
    for table in (module._parameters, module._buffers):
        for key in [key for key, tensor in table.items() if tensor is not None]:
            del table[key]
            vars(module)[key] = tracer.create_proxy("get_attr", f"{name}.{key}", (), {})


def _symbols(values: object) -> list[fx.Proxy]:
    """Symbols that modules have kept: someone may look at them after a forward."""
    found: list[fx.Proxy] = []
    map_aggregate(values, lambda v: found.append(v) if type(v) is _Symbol else None)  # type: ignore[arg-type]
    return found


def _check_registry(name: str, module: nn.Module) -> None:
    """A module that is not entered must not reach others unseen, from a plain list, say."""
    others: list[nn.Module] = []
    held = [value for key, value in vars(module).items() if key != "_modules"]
    map_aggregate(held, lambda v: others.append(v) if isinstance(v, nn.Module) else None)  # type: ignore[arg-type]
    if others:
        raise ValueError(f"{name} holds modules that are not its submodules")


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
