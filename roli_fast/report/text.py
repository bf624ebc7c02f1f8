"""Numbers as a reader wants them: rounded, with units and spreads."""

import math
from collections.abc import Callable, Sequence
from statistics import mean, stdev
from typing import Any

from roli_fast.norms import NORMS

NONE = "–"
"""In a table where there is no number."""

THIN = "\u00a0"
"""A space at which no line breaks."""

NAMES = {
    "roli": "RoLI",
    "roli_fast": "RoLI, one step",
    "ranli": "RanLI",
    "ranli_matched": "RanLI, matched epochs",
    "ramp": "RanLI, rising radius",
    "ramp_fast": "RanLI, rising radius, one step",
    "lp": "LP",
    "ft": "FT",
    "lp_ft": "LP-FT",
    "probe": "probe",
    "finetune": "fine-tune",
    "scratch": "from scratch",
}
"""Methods as papers write them."""


def method_name(method: str) -> str:
    """ "lp_ft" -> "LP-FT"."""
    return NAMES.get(method, method)


def known(value: Any) -> bool:
    """Whether it is a finite number."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value)


def number(value: Any, digits: int = 3) -> str:
    """ "24.8", "0.951", "1,234", "3.1e-07"; a dash for None, NaN and infinities."""
    if not known(value):
        return NONE
    size = abs(value)
    if value == 0 or 10 ** (digits - 1) <= size < 1e6:
        text = f"{value:,.0f}"
    elif size < 1e-3 or size >= 1e6:
        text = f"{value:.{digits - 1}g}"
    else:
        text = f"{value:#.{digits}g}".rstrip(".")
    return text.replace("-", "−")


def whole(value: Any) -> str:
    """12345 -> "12,345"; of counts."""
    return f"{round(value):,}".replace("-", "−") if known(value) else NONE


def given(value: Any) -> str:
    """A number of the configuration as it was given: "2.5e-05", "0.1"."""
    return f"{value:g}" if known(value) else NONE


def percent(value: Any, places: int = 1) -> str:
    """0.6602 -> "66.0 %"."""
    return f"{100 * value:.{places}f}{THIN}%".replace("-", "−") if known(value) else NONE


def percent_within(value: Any, spread: Any) -> str:
    """0.6602, 0.025 -> "66.0 ± 2.5 %"."""
    if not known(value) or not known(spread):
        return percent(value)
    return f"{percent(value)[:-2]}{THIN}±{THIN}{percent(spread)}"


def points(value: float) -> str:
    """0.058 -> "+5.8 points"; of percent."""
    return f"{100 * value:+.1f} points".replace("-", "−")


def over_seeds(found: Sequence[float], digits: int = 3) -> str:
    """ "24.8 ± 0.35": mean and sample standard deviation; one number stands alone."""
    if len(found) < 2:
        return number(found[0], digits) if found else NONE
    middle, spread = mean(found), stdev(found)
    spread = 0.0 if spread <= 1e-12 * abs(middle) else spread
    return f"{number(middle, digits)}{THIN}±{THIN}{number(spread, 2)}"


def percent_over_seeds(found: Sequence[float]) -> str:
    """Shares: "66.0 ± 2.5 %"."""
    return percent_within(mean(found) if found else None, stdev(found) if len(found) > 1 else None)


def change(before: Sequence[float], after: Sequence[float], one: Callable[..., str]) -> str:
    """ "0.95 → 24.8"; a dash where neither is known."""
    return f"{one(before)} →{THIN}{one(after)}" if before or after else NONE


def p_value(value: float | None) -> str:
    """ "p = 0.0015"."""
    if value is None:
        return "p undefined"
    return "p < 0.0001" if value < 1e-4 else f"p = {value:.2g}"


def radius(norm: Any, eps: Any) -> str:
    """ "linf 8/255", "linf 0.08 (20.4/255)", "l2 0.5"."""
    if not known(eps):
        return str(norm)
    grey, whole = eps * unit(norm), f"{unit(norm):g}"
    if whole != "1" and abs(grey - round(grey)) < 1e-6:
        return f"{norm} {round(grey)}/{whole}"
    return f"{norm} {eps:.4g}" + (f" ({grey:.1f}/{whole})" if whole != "1" else "")


def unit(norm: Any) -> float:
    """Radii in this norm are shown in 1/unit: 255 for grey levels."""
    return NORMS[norm].unit if norm in NORMS else 1.0


def radius_name(norm: Any) -> str:
    """ "radius in 1/255", "radius"."""
    return "radius" if unit(norm) == 1 else f"radius in 1/{unit(norm):g}"


def count(value: Any, noun: str) -> str:
    """ "1 seed", "359 test images"; the noun in the plural."""
    one = noun[:-2] if noun.endswith("sses") else noun[:-1]
    return f"1 {one}" if value == 1 else f"{whole(value)} {noun}"


def listed(words: Sequence[str]) -> str:
    """ "a, b and c"; a dash for none."""
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:]))) or NONE
