"""What all layers around other packages share: their import, their names, attributes, arguments and
targets."""

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import Tensor

from roli_fast.attacks import Attack
from roli_fast.attacks.passes import Passes
from roli_fast.engine import InputGradient
from roli_fast.engine.input_gradient import Model
from roli_fast.errors import ArgumentError, MissingPackageError, describe

NORMS = {"Linf": "linf", "L2": "l2", "L1": "l1"}
"""AutoAttack's and torchattacks' names of norms -> ours."""


def our_norm(norm: str) -> str:
    """Our name of a norm."""
    if norm not in NORMS:
        raise ArgumentError(describe("norm", " or ".join(map(repr, NORMS)), repr(norm)))
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


class ReadAttributes:
    """Base of classes whose users set attributes and override methods, as in the peer's: what is
    not read is refused, never swallowed.

    Once `_built` is set, an attribute that the instance does not have is an error, and so are the
    peer's names in `unread`, overridden ones too. Subclasses of a user's own may add any others.
    """

    unread: ClassVar[frozenset[str]] = frozenset()
    """The peer's attributes and methods that nothing here reads or calls."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name in vars(cls):
            if name in cls.unread:
                cls._refuse(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if "_built" in vars(self):
            own = type(self).__module__.partition(".")[0] != __name__.partition(".")[0]
            if name in self.unread or not (own or hasattr(self, name)):
                self._refuse(name)
        super().__setattr__(name, value)

    def overrides(self, name: str, base: type) -> bool:
        """Whether a method of `base` was overridden in a subclass, or replaced on this instance."""
        return name in vars(self) or getattr(type(self), name) is not getattr(base, name)

    @classmethod
    def _refuse(cls, name: str) -> None:
        fix = "Nothing reads it here: it would have no effect."
        raise ArgumentError(describe(name, f"an attribute that {cls.__name__} reads", name, fix))


def clean_logits(model: Model, x: Tensor) -> Tensor:
    """Logits (B, C) of images, of the model in eval mode: one forward."""
    anything = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    with InputGradient(model) as engine, torch.no_grad():
        return Passes(engine).clean(x, anything)


def beside(labels: Tensor, target: Tensor) -> Tensor:
    """Labels, but where one is the target: a neighbour of it.

    An attack refuses a target that is the label, and here one may be (or all, where labels are
    targets). Towards a target, cross-entropy and margin do not depend on the label.
    """
    if target.shape != labels.shape:
        got = f"shape {tuple(target.shape)}"
        raise ArgumentError(describe("target", f"shape {tuple(labels.shape)}", got))
    neighbour = torch.where(target > 0, target - 1, target + 1)
    return torch.where(labels == target, neighbour, labels)


def aimed(attack: Attack, target: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """Labels and options of a call that goes towards `target` (B,), where no label is known.

    Raises:
        ArgumentError: an attack that takes no target, or whose loss needs the label beside it.
    """
    if "target" not in attack.options:
        expected = "an attack that takes a target (PGD, Square)"
        raise ArgumentError(describe("attack", expected, attack.label))
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
    if not any(isinstance(finder, _StandIns) for finder in sys.meta_path):
        sys.meta_path.insert(0, _StandIns())


class _StandIns(MetaPathFinder):
    """Finds `peer.name` where one of our packages is `sys.modules["peer"]`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        peer, _, name = fullname.partition(".")
        own = str(getattr(sys.modules.get(peer), "__name__", peer))
        if not name or own == peer or not own.startswith(f"{__package__}."):
            return None
        return ModuleSpec(fullname, _Existing(import_module(f"{own}.{name}")))


class _Existing(Loader):
    """Gives a module that has been imported, as it is."""

    def __init__(self, module: ModuleType) -> None:
        self.module, self.spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.spec  # the import has set that of the other name
