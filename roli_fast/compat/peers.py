"""What all layers around other packages share: their import, names, arguments and targets."""

import inspect
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from roli_fast.attacks import Attack
from roli_fast.engine import InputGradient
from roli_fast.engine.input_gradient import Model
from roli_fast.errors import ArgumentError, MissingPackageError, check_choice, describe

NORMS = {"Linf": "linf", "L2": "l2", "L1": "l1"}
"""AutoAttack's and torchattacks' names of norms -> ours."""


def our_norm(norm: str) -> str:
    """Our name of a norm."""
    check_choice("norm", norm, tuple(NORMS))
    return NORMS[norm]


def library(module: str, package: str) -> Any:
    """The module of another package, imported now, or an error that says how to install it.

    Args:
        module: dotted name.
        package: what pip calls it.

    Raises:
        MissingPackageError: it, or something that it needs, is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        text = f"{module} cannot be imported ({error}). Install it: pip install {package}"
        raise MissingPackageError(text, name=error.name) from error


def constructor(begin: Callable[..., None], first: str, more: Mapping[str, Any]) -> Any:
    """An `__init__` of the signature (self, first, **more), each of `more` with its default, that
    calls `begin(self, first, **values)`: a class from a row of a table."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    signature = inspect.Signature(
        [inspect.Parameter(name, kind) for name in ("self", first)]
        + [inspect.Parameter(name, kind, default=value) for name, value in more.items()]
    )

    def __init__(*args: Any, **named: Any) -> None:
        given = signature.bind(*args, **named)
        given.apply_defaults()
        begin(*given.args[:2], **{name: given.arguments[name] for name in more})

    __init__.__signature__ = signature  # type: ignore[attr-defined]
    return __init__


class UserAttributes:
    """Base of classes whose users set attributes and override methods, as in the peer's.

    Once `_built` is set, an attribute that the instance does not have is an error: a slip in its
    name would have no effect. Subclasses of a user's own may add any.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if "_built" in vars(self) and not hasattr(self, name) and _is_ours(type(self)):
            expected = f"an attribute that {type(self).__name__} reads"
            raise ArgumentError(describe(name, expected, name))
        super().__setattr__(name, value)

    def overrides(self, name: str) -> bool:
        """Whether a user has overridden this method, in a subclass or on this instance."""
        owner = next(kind for kind in type(self).__mro__ if name in vars(kind))
        return name in vars(self) or not _is_ours(owner)


def _is_ours(kind: type) -> bool:
    return kind.__module__.startswith("roli_fast.")


def clean_logits(model: Model, x: Tensor) -> Tensor:
    """Logits (B, C) of images, of the model in eval mode: one forward."""
    anything = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    with InputGradient(model) as gradient:
        return gradient.evaluate(x, anything)[1]


def beside(labels: Tensor, target: Tensor) -> Tensor:
    """Labels, but where one is the target: a neighbour of it.

    An attack refuses a target that is the label, and here one may be (or all, where labels are
    targets). Towards a target, cross-entropy and margin do not depend on the label.
    """
    neighbour = torch.where(target > 0, target - 1, target + 1)
    return torch.where(labels == target, neighbour, labels)


def aimed(attack: Attack, target: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """Labels and options of a call that goes towards `target` (B,), where no label is known.

    Raises:
        ArgumentError: an attack whose loss needs the label beside the target.
    """
    if getattr(attack, "loss", None) == "dlr":
        fix = "The dlr of a target depends on the label, which is not known here."
        raise ArgumentError(describe("loss", "'ce' or 'margin'", "'dlr'", fix))
    return beside(target, target), {"target": target}


def add_modules(package: str, modules: Mapping[str, Mapping[str, Any]]) -> None:
    """Make the peer's modules importable: `package.name` for each name, with these members.

    They are there too where `package` stands in for the peer, which takes one line:
    `sys.modules["peer"] = package`. Then `import peer.name` gives the same module, not a copy.
    """
    for name, members in sorted(modules.items()):  # parents before their children
        module = ModuleType(f"{package}.{name}", f"The names of `{name}`.")
        vars(module).update(members)
        if any(other.startswith(f"{name}.") for other in modules):
            module.__path__ = []
        parent, _, own = module.__name__.rpartition(".")
        setattr(sys.modules[parent], own, module)
        sys.modules[module.__name__] = module
    if _StandIns not in sys.meta_path:
        sys.meta_path.insert(0, _StandIns)


class _StandIns:
    """Finds and loads `peer.name` where one of our packages is `sys.modules["peer"]`."""

    @classmethod
    def find_spec(cls, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        peer, _, name = fullname.partition(".")
        own = str(getattr(sys.modules.get(peer), "__name__", peer))
        if not name or own == peer or not own.startswith(f"{__package__}."):
            return None
        return ModuleSpec(fullname, cls, origin=f"{own}.{name}")  # pyright: ignore

    @staticmethod
    def create_module(spec: ModuleSpec) -> ModuleType:
        return import_module(str(spec.origin))

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        """It has been executed under its own name."""
