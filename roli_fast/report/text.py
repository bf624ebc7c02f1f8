"""Numbers as a reader wants them: rounded, with units and spreads."""

import math
from collections.abc import Callable, Sequence
from statistics import mean, stdev
from typing import Any

NONE = "–"
"""In a table where there is no number."""

THIN = "\u00a0"
"""A space at which no line breaks."""

NAMES = {
    "roli": "RoLI",
    "ranli": "RanLI",
    "ranli_matched": "RanLI, matched epochs",
    "lp": "LP",
    "ft": "FT",
    "lp_ft": "LP-FT",
    "probe": "probe",
    "finetune": "fine-tune",
    "scratch": "from scratch",
}
"""Methods as papers write them."""

WHAT = {
    "roli": "adversarial linear probe, then adversarial fine-tuning from that head",
    "ranli": "adversarial fine-tuning from a fresh head",
    "ranli_matched": "adversarial fine-tuning from a fresh head, with the epochs of both RoLI "
    "stages",
    "lp": "linear probe on clean images",
    "ft": "fine-tuning on clean images from a fresh head",
    "lp_ft": "linear probe on clean images, then fine-tuning on clean images from that head",
    "probe": "adversarial linear probe alone",
    "finetune": "fine-tuning of a classifier that keeps its head",
    "scratch": "training from random weights",
}
"""What the methods do."""


def method_name(method: str) -> str:
    """ "lp_ft" -> "LP-FT"."""
    return NAMES.get(method, method)


def number(value: Any, digits: int = 3) -> str:
    """ "24.8", "0.951", "1,234", "3.1e-07"; a dash for None, NaN and infinities."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        return NONE
    size = abs(value)
    if size >= 1e6:
        return f"{value:.{digits - 1}e}".replace("e+0", "e").replace("e+", "e").replace("-", "−")
    if value == 0 or size >= 10 ** (digits - 1):
        return f"{value:,.0f}".replace("-", "−")
    if size < 1e-3:
        return f"{value:.{digits - 1}g}".replace("-", "−")
    size = float(f"{size:.{digits - 1}e}")  # 0.99999 is shown as 1.00, with two places
    places = digits - 1 - math.floor(math.log10(size))
    return f"{value:.{max(0, places)}f}".replace("-", "−")


def whole(value: Any) -> str:
    """12345 -> "12,345"; of counts."""
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return NONE
    return f"{round(value):,}".replace("-", "−")


def given(value: Any) -> str:
    """A number of the configuration as it was given: "2.5e-05", "0.1"."""
    known = isinstance(value, (int, float)) and math.isfinite(value)
    return f"{value:g}" if known else NONE


def percent(value: Any, places: int = 1) -> str:
    """0.6602 -> "66.0 %"."""
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return NONE
    return f"{100 * value:.{places}f}{THIN}%".replace("-", "−")


def percent_within(value: Any, spread: Any) -> str:
    """0.6602, 0.025 -> "66.0 ± 2.5 %"."""
    text = percent(value)
    if text == NONE or not isinstance(spread, (int, float)) or not math.isfinite(spread):
        return text
    places = 2 if 0 < spread < 5e-4 else 1
    return f"{percent(value, places)[:-2]}{THIN}±{THIN}{100 * spread:.{places}f}{THIN}%"


def points(value: float) -> str:
    """0.058 -> "+5.8 points"; of percent."""
    return f"{100 * value:+.1f} points".replace("-", "−")


def over_seeds(found: Sequence[float], digits: int = 3) -> str:
    """ "24.8 ± 0.3": mean and sample standard deviation; one number stands alone."""
    if not found:
        return NONE
    middle = mean(found)
    if len(found) == 1:
        return number(middle, digits)
    spread, pm = stdev(found), f"{THIN}±{THIN}"
    size = max(abs(middle), spread)
    if spread <= 1e-12 * size:
        return f"{number(middle, digits)}{pm}0"
    if size >= 1e4 or size < 1e-3:
        return f"{number(middle, digits)}{pm}{number(spread, 2)}"
    places = max(0, digits - 1 - math.floor(math.log10(size)))
    around = f"{spread:,.{places}f}"
    if not float(around.replace(",", "")):
        around = number(spread, 1)
    return f"{middle:,.{places}f}{pm}{around}".replace("-", "−")


def percent_over_seeds(found: Sequence[float]) -> str:
    """Shares: "66.0 ± 2.5 %"."""
    if not found:
        return NONE
    return percent_within(mean(found), stdev(found) if len(found) > 1 else None)


def change(before: Sequence[float], after: Sequence[float], one: Callable[..., str]) -> str:
    """ "0.95 → 24.8"; a dash where neither is known."""
    if not before and not after:
        return NONE
    return f"{one(before)} →{THIN}{one(after)}"


def p_value(value: float | None) -> str:
    """ "p = 0.0015"."""
    if value is None:
        return "p undefined"
    return "p < 0.0001" if value < 1e-4 else f"p = {value:.2g}"


def radius(norm: Any, eps: Any) -> str:
    """ "linf 8/255", "linf 0.08 (20.4/255)", "l2 0.5"."""
    if not isinstance(eps, (int, float)) or not math.isfinite(eps):
        return str(norm)
    if norm != "linf":
        return f"{norm} {eps:.4g}"
    grey = eps * 255
    if abs(grey - round(grey)) < 1e-6:
        return f"linf {round(grey)}/255"
    return f"linf {eps:.4g} ({grey:.1f}/255)"


def duration(seconds: Any) -> str:
    """ "4.2 s", "2 min 13 s", "1 h 05 min"."""
    if not isinstance(seconds, (int, float)) or not math.isfinite(seconds):
        return NONE
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min"


def count(value: Any, noun: str) -> str:
    """ "1 seed", "359 test images"; the noun in the plural."""
    if value == 1:
        return f"1 {noun[:-3] + 's' if noun.endswith('sses') else noun.removesuffix('s')}"
    return f"{whole(value)} {noun}"


def listed(words: Sequence[str]) -> str:
    """ "a, b and c"."""
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last
