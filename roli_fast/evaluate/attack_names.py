"""Short names of attacks, as they are written on the command line and shown in tables."""

import re
from collections.abc import Mapping
from typing import Any

from roli_fast.attacks import ATTACKS
from roli_fast.attacks.auto_attack import PRESETS
from roli_fast.attacks.objective import LOSSES
from roli_fast.configuration.files import load_yaml
from roli_fast.configuration.schema import FOLLOWS_THREAT
from roli_fast.configuration.values import field_types
from roli_fast.errors import ConfigError, RoliFastError, describe
from roli_fast.norms import NORMS

EXAMPLES = "autoattack, autoattack-apgd, pgd-50, apgd-ce, apgd-t, fab-t, square-1000"

_COUNTS = {"r": "restarts", "eot": "eot", "s": "searches"}
_COUNTS |= {"ti": "kernel", "si": "scales", "vt": "neighbours"}
_COUNTED = re.compile(rf"({'|'.join(_COUNTS)})(\d+)")


def attack_tree(text: str) -> Mapping[str, Any]:
    """What a short name stands for: a registered name, then words in any order.

    A number is the steps (Square's queries), ce, dlr, margin or kl the loss, standard, plus,
    rand or apgd AutoAttack's version, r5 five restarts, eot20 twenty passes, s9 nine searches
    of CW, large the large radii of l1; ti15, si5, ni and vt5 are Transfer's options. @l2=1
    behind them is a norm and its radius, for an attack in a ball of its own.

    Raises:
        ConfigError: no attack has this name, the attack has nothing that a word could set, or two
            words set the same.
    """
    named, at, ball = text.partition("@")
    words = named.strip().lower().replace("_", "-")
    for name in sorted(ATTACKS, key=len, reverse=True):
        written = name.replace("_", "-")
        if words == written or words.startswith(f"{written}-"):
            break
    else:
        fix = f"Known: {', '.join(ATTACKS)}."
        raise ConfigError(describe("attacks", f"names like {EXAMPLES}", repr(text), fix))
    known = field_types(ATTACKS[name])
    settings: dict[str, Any] = _ball(ball, known, text) if at else {}
    for word in words.removeprefix(written).split("-")[1:]:
        setting, value = _setting(word, known)
        if setting is None or setting in settings:
            fix = f"`{word}` sets nothing there; what has no short name is written in YAML."
            if setting in settings:
                fix = f"`{word}` sets `{setting}`, which is {settings[setting]!r} already."
            raise ConfigError(describe("attacks", f"names like {EXAMPLES}", repr(text), fix))
        settings[setting] = value
    try:  # the attack itself would not say which of several it is
        ATTACKS[name](**dict.fromkeys(set(FOLLOWS_THREAT) & set(known)) | settings)
    except RoliFastError as error:
        raise ConfigError(f"`attacks`: {text!r}: {error}") from error
    return {"name": name, **settings}


def _ball(ball: str, known: Mapping[str, Any], text: str) -> dict[str, Any]:
    """Norm and radius of "l2=1"."""
    norm, equals, radius = (part.strip() for part in ball.partition("="))
    try:
        eps = float(load_yaml(radius))
        if not equals or norm not in NORMS or "norm" not in known:
            raise ValueError
    except (ValueError, TypeError, ZeroDivisionError):
        expected = f"NAME@NORM=RADIUS with a norm of: {', '.join(NORMS)}"
        raise ConfigError(describe("attacks", expected, repr(text), "square@l2=1, say.")) from None
    return {"norm": norm, "eps": eps}


def _setting(word: str, known: Mapping[str, Any]) -> tuple[str | None, Any]:
    """The field that a word sets, and its value; None where the attack has no such field."""
    candidates: list[tuple[str, Any]] = []
    if word.isdecimal() and "version" not in known:  # AutoAttack's are part of its definition
        candidates = [("steps", int(word)), ("n_queries", int(word))]
    elif word in LOSSES:
        candidates = [("loss", word)]
    elif word in PRESETS:
        candidates = [("version", word)]
    elif word in ("large", "ni"):
        candidates = [("large_radius" if word == "large" else "nesterov", True)]
    elif counted := _COUNTED.fullmatch(word):
        candidates = [(_COUNTS[counted[1]], int(counted[2]))]
    return next(((name, value) for name, value in candidates if name in known), (None, None))
