"""What can be folded in a model: which layer feeds which BN, looked up once for its structure."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, NamedTuple, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from roli_fast.engine.dataflow import Dataflow
from roli_fast.engine.patches import by_patches, cuts_patches
from roli_fast.errors import RoliFastError

logger = logging.getLogger("roli_fast.engine")


@runtime_checkable
class Foldable(Protocol):
    """A module (x - mean) / std per channel that can leave the division to the layer behind it.

    While `folded` is true, `forward` only subtracts; False is the normal state.
    """

    folded: bool

    def fold_request(self) -> Tensor | None:
        """The divisors, C numbers, now; None if this module cannot be folded as it is."""
        ...


class Link(NamedTuple):
    """Names of a layer, of the BN that alone reads it, and of the `Foldable` it alone reads."""

    layer: str
    norm: str | None
    scaling: str | None


class Plan(NamedTuple):
    """What to fold in a model of this structure, and why that is nothing."""

    structure: tuple[Any, ...]
    links: list[Link]
    patches: list[str]
    reason: str | None


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
_CHOICES = (bool, int, str, type(None), Enum)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

_plans: "WeakKeyDictionary[nn.Module, Plan]" = WeakKeyDictionary()


def plan_of(model: nn.Module) -> Plan:
    """The plan for a model in eval mode.

    It is made anew once a module was replaced, got a hook, or has another flag, number or word by
    which its forward may choose a way, as a model with a BN for clean and one for attacked images.
    Of other ways to choose `forget_plan` and `refuse` are told.
    """
    structure = _structure(model)
    known = _plans.get(model)
    if known is None or known.structure != structure:
        known = _plans[model] = _planned(model, structure)
    return known


def forget_plan(model: nn.Module) -> None:
    """Look at the model again: its forward no longer goes the way of the plan."""
    _plans.pop(model, None)


def refuse(model: nn.Module) -> None:
    """Fold no more BN of this model: its forward does not go the way that it goes on symbols."""
    plan = plan_of(model)
    reason = "its forward goes other ways than when it was looked at"
    logger.info(f"BN of {type(model).__name__} is not folded: {reason}")
    _plans[model] = plan._replace(links=[], reason=reason)


def folded_forward(norm: nn.Module) -> Callable[[Any, Tensor], Tensor]:
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


_OURS = (_nothing, _activation, _rows, by_patches)


def _kind(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _is_plain(module: nn.Module) -> bool:
    """Whether a call of it is a call of its type's `forward`, or of ours."""
    held = vars(module)
    forward = held.get("forward")
    return not (
        any(held.get(hooks) for hooks in _HOOKS)
        or held.get("_compiled_call_impl") is not None
        or (forward is not None and getattr(forward, "__func__", None) not in _OURS)
    )


def _structure(model: nn.Module) -> tuple[Any, ...]:
    """All that a plan depends on, in numbers that are compared in a moment."""
    seen: dict[int, int] = {}
    found: list[Any] = [bool(_has_any_global_hook())]
    for name, module in model.named_modules(remove_duplicate=False):
        held = vars(module)
        number = seen.setdefault(id(module), len(seen))
        found.append((name, type(module), number, _is_plain(module)))
        if module._modules:
            found.extend((key, value) for key, value in held.items() if isinstance(value, _CHOICES))
    return tuple(found)


def _planned(model: nn.Module, structure: tuple[Any, ...]) -> Plan:
    modules = dict(model.named_modules())
    if any(_kind(module).startswith(_WRAPPERS) for module in modules.values()):
        return Plan(structure, [], [], "a part of it is compiled, scripted or parallel")
    closed = _closed(model)
    plain = {name: m for name, m in modules.items() if not closed & {name, *_above(name)}}
    patches = [name for name, module in modules.items() if cuts_patches(module)]
    norms = {name for name, module in plain.items() if _kind(module) in _NORMS}
    scalings = {name for name, module in plain.items() if hasattr(type(module), "fold_request")}
    layers = _layers(plain, norms, scalings)
    if not layers or not norms | scalings:
        return Plan(structure, [], patches, None)
    if "forward" in vars(model) or _has_any_global_hook():
        return Plan(structure, [], patches, "its forward is replaced, or hooks are on all modules")
    try:
        flow = Dataflow(model, layers | norms | scalings, closed)
    except Exception as error:
        said = str(error).partition("\n")[0]
        reason = f"its forward cannot be followed ({type(error).__name__}: {said})"
        logger.info(f"BN of {type(model).__name__} is not folded: {reason}")
        return Plan(structure, [], patches, reason)
    return Plan(structure, _links(flow, plain, layers, norms, scalings), patches, None)


def _closed(model: nn.Module) -> set[str]:
    """Modules that do more than their type says, or have two names, by either of which someone may
    call them. A hook on the whole model sees images and logits alone."""
    counts: Counter[int] = Counter()
    found = set()
    for name, module in model.named_modules(remove_duplicate=False):
        counts[id(module)] += 1
        if name and not _is_plain(module):
            found.add(name)
    return found | {name for name, module in model.named_modules() if counts[id(module)] > 1}


def _above(name: str) -> set[str]:
    """Names of the modules around one, but for the model itself."""
    return {name[:i] for i, letter in enumerate(name) if letter == "."}


def _links(
    flow: Dataflow, plain: Mapping[str, Any], layers: set[str], norms: set[str], scalings: set[str]
) -> list[Link]:
    behind = {flow.source(norm): norm for norm in norms}
    links = []
    for layer in sorted(layers):
        before, norm = flow.source(layer), behind.get(layer)
        if norm is not None:
            of_rows = _kind(plain[norm]) == _OF_ROWS
            norm = norm if of_rows == (_kind(plain[layer]) == _LINEAR) else None
        scaling = before if before in scalings else None
        if norm or scaling:
            links.append(Link(layer, norm, scaling))
    return links


def _layers(plain: Mapping[str, Any], norms: set[str], scalings: set[str]) -> set[str]:
    """The layers worth looking at: what lies around others need not be followed."""
    requests = [plain[name].fold_request() for name in scalings]
    channels = {request.numel() for request in requests if request is not None}
    rows = any(_kind(plain[name]) == _OF_ROWS for name in norms)
    found = set()
    for name, module in plain.items():
        kind = _kind(module)
        of_images = kind in _CONVOLUTIONS and (norms or module.in_channels in channels)
        if of_images or (kind == _LINEAR and rows):
            found.add(name)
    return found
