"""Attributes of a peer's interface: what is not read is refused, never swallowed."""

from typing import Any, ClassVar

from roli_fast.errors import ArgumentError, describe


class ReadAttributes:
    """Base of classes whose users set attributes and override methods, as in the peer's.

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
