"""Which layers of a model read which layers' outputs, found by running it on symbols.

The model's own code runs once, on a copy without weights, with a symbol (`torch.fx.Proxy`) for the
images. What asks for a value that it does not have (a branch on a shape, say) raises, and then
nothing is known of the model. `torch.fx.Tracer` is not used: it replaces `nn.Module.__call__` for
the whole process meanwhile, also for other threads.
"""

import copy
from collections.abc import Iterator, Mapping, Set
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate
from torch.fx.proxy import GraphAppendingTracer

_SIZES = {"shape", "ndim", "size", "dim", "numel", "dtype", "device", "requires_grad", "is_cuda"}
"""What may be asked of a tensor besides its values: folding changes none of it."""


class Dataflow:
    """Calls of modules in one forward of `model`, and who reads what they return.

    Args:
        model: images -> logits, in eval mode.
        layers: names of the modules that matter; of all others only those around them are entered.
        closed: names of modules that must not be entered, with hooks, say: they run as one call.

    Raises:
        Exception: whatever the model's code raises when it is given a symbol.
    """

    def __init__(self, model: nn.Module, layers: Set[str], closed: Set[str]) -> None:
        self._graph = fx.Graph()
        self._calls: dict[str, list[fx.Node]] = {}
        tracer = _Tracer(self._graph)
        twin = _copy(model)
        around = {"", *(name[:i] for name in layers for i, c in enumerate(name) if c == ".")}
        inner = dict(twin.named_modules())  # a module with two names has the first
        for name, module in inner.items():
            if name in layers or name in closed:
                _without_hooks(module)
            entered = name in around or isinstance(module, nn.Identity)
            if name in layers | closed or not entered:
                vars(module)["forward"] = partial(self._call, tracer, name)
            if name in closed or not entered:
                _check_registry(name, module)
        hidden = (*layers, *around - layers)
        weights = {name: _hide(tracer, name, inner[name]) for name in hidden if name in inner}
        with torch.no_grad(), torch.random.fork_rng(_devices(model)):
            found = twin.forward(tracer.create_proxy("placeholder", "x", (), {}))
        kept = [vars(part) for name, part in inner.items() if name not in layers]
        self._graph.output(tracer.create_arg((found, *_symbols(kept))))
        self._touched = {name for name in layers if any(n.users for n in weights.get(name, []))}

    def _call(self, tracer: "_Tracer", name: str, *args: Any, **kwargs: Any) -> fx.Proxy:
        called = tracer.create_proxy("call_module", name, args, kwargs)
        self._calls.setdefault(name, []).append(called.node)
        return called

    def source(self, name: str) -> str | None:
        """The module whose output goes to module `name` and nowhere else, where there is one."""
        call = self._only_call(name)
        if call is None or call.kwargs or len(call.args) != 1:
            return None
        source = call.args[0]
        if not isinstance(source, fx.Node) or source.op != "call_module":
            return None
        other = str(source.target)
        if self._only_call(other) is not source or list(_readers(source)) != [call]:
            return None
        return other

    def _only_call(self, name: str) -> fx.Node | None:
        calls = self._calls.get(name, [])
        return calls[0] if len(calls) == 1 and name not in self._touched else None


def _hide(tracer: "_Tracer", name: str, module: nn.Module) -> list[fx.Node]:
    """Symbols for a module's own tensors: code that reads a layer's itself is noticed so, and what
    a model makes of its own and of an image's shape need not be computed."""
    nodes = []
    for kind in (module._parameters, module._buffers):
        for key in [key for key, tensor in kind.items() if tensor is not None]:
            del kind[key]
            symbol = tracer.create_proxy("get_attr", f"{name}.{key}", (), {})
            vars(module)[key] = symbol
            nodes.append(symbol.node)
    return nodes


class _Symbol(fx.Proxy):
    """Stands for a tensor, also for code that asks `isinstance(x, Tensor)`."""

    @property
    def __class__(self) -> type:  # type: ignore[override]
        return Tensor


class _Tracer(GraphAppendingTracer):
    """Notes operations; constant tensors are of no interest."""

    def create_arg(self, a: Any) -> Any:
        if type(a) in (_Symbol, fx.Proxy):
            return a.node
        return None if isinstance(a, (Tensor, torch.Generator)) else super().create_arg(a)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        sizes = _of_size(node) or (
            bool(node.all_input_nodes) and all(n.meta.get("sizes") for n in node.all_input_nodes)
        )
        node.meta["sizes"] = sizes
        return fx.Proxy(node, self) if sizes else _Symbol(node, self)


def _of_size(node: fx.Node) -> bool:
    """Whether this asks for a tensor's shape or kind, and not for its values."""
    if node.op == "call_function" and node.target is getattr:
        return node.args[1] in _SIZES
    return node.op == "call_method" and node.target in _SIZES


def _readers(node: fx.Node) -> Iterator[fx.Node]:
    return (user for user in node.users if not _of_size(user))


def _symbols(values: list[dict[str, Any]]) -> list[fx.Proxy]:
    """Symbols that modules have kept: someone may look at them after a forward."""
    found = []
    map_aggregate(
        [v for held in values for v in held.values()],
        lambda v: found.append(v) if type(v) in (_Symbol, fx.Proxy) else None,
    )
    return found


def _copy(model: nn.Module) -> nn.Module:
    """The model's modules and attributes copied, so that a forward may do to them what it likes;
    parameters are the model's own."""
    shared: dict[int, Any] = {id(p): p for p in model.parameters()}
    for module in model.modules():
        shared.update({id(v): v for v in vars(module).values() if isinstance(v, Tensor)})
    return copy.deepcopy(model, shared)


def _check_registry(name: str, module: nn.Module) -> None:
    """A module that is not entered must not reach others unseen, from a plain list, say."""
    others = []
    held = [value for key, value in vars(module).items() if key != "_modules"]
    map_aggregate(held, lambda v: others.append(v) if isinstance(v, nn.Module) else None)
    if others:
        raise ValueError(f"{name} holds modules that are not its submodules")


def _without_hooks(module: nn.Module) -> None:
    for key, value in vars(module).items():
        if key.endswith("_hooks") and isinstance(value, Mapping):
            vars(module)[key] = type(value)()


def _devices(model: nn.Module) -> list[torch.device]:
    return list({p.device for p in model.parameters() if p.device.type == "cuda"})
