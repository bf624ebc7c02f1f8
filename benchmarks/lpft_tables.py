"""The study's numbers as Markdown: all of one data set, or the main ones of all."""

import statistics
from collections.abc import Sequence
from typing import Any

import lpft_costs
from lpft_claims import NAMES

ROWS = {
    "clean accuracy, %": ("clean", 100, 1),
    "robust accuracy, %": ("robust", 100, 1),
    "robust accuracy, scale-free attack, %": ("robust_margin", 100, 1),
    "L2 strength of LP": ("strength", 1, 6),
    "head norm, fresh": ("norm_fresh", 1, 2),
    "head norm, fine-tune starts": ("norm_start", 1, 2),
    "head norm, at the end": ("norm_end", 1, 2),
    **{
        f"{text}, {kind}": (f"{name}_{kind}", factor, digits)
        for name, text, factor, digits in (
            ("residual", "mean residual at the start", 1, 3),
            ("drift", "feature drift", 1, 2),
            ("relative", "feature drift, relative", 1, 2),
            ("cosine", "cosine of features to before", 1, 3),
            ("cka", "linear CKA to before", 1, 3),
            ("ft_ratio", "FT ratio", 1, 3),
            ("predicted", "SGD's first step, predicted", 1, 3),
            ("actual", "SGD's first step, made", 1, 3),
            ("update_predicted", "AdamW's step at the full rate, predicted", 1, 3),
            ("update_actual", "AdamW's step at the full rate, made", 1, 3),
        )
        for kind in ("clean", "adversarial")
    },
    "ECE clean, %": ("ece_clean", 100, 1),
    "ECE clean after T, %": ("ece_clean_after", 100, 1),
    "ECE under attack, %": ("ece_adversarial", 100, 1),
    "ECE under attack, its own T, %": ("ece_adversarial_after", 100, 1),
    "ECE under attack, clean T, %": ("ece_adversarial_borrowed", 100, 1),
    "T, clean": ("temperature_clean", 1, 2),
    "T, under attack": ("temperature_adversarial", 1, 2),
}
"""What the table shows: text -> quantity, factor, digits."""


MAIN = {
    "clean accuracy, %": ("clean",),
    "robust accuracy, %": ("robust",),
    "under a scale-free attack, %": ("robust_margin",),
    "head norm when the fine-tune starts": ("norm_start",),
    "residual then, clean / attacked": ("residual_clean", "residual_adversarial"),
    "FT ratio then": ("ft_ratio_clean", "ft_ratio_adversarial"),
    "feature drift": ("drift_clean", "drift_adversarial"),
    "ECE clean, %: as it is / T": ("ece_clean", "ece_clean_after"),
    "ECE attacked, %: as it is / own T / clean T": (
        "ece_adversarial",
        "ece_adversarial_after",
        "ece_adversarial_borrowed",
    ),
}
"""The rows of a short table: text -> quantities."""


def table(found: dict[str, Any]) -> str:
    """Markdown of one data set: numbers, claims, costs."""
    lines = [f"| | {' | '.join(NAMES.values())} |", f"|{'---|' * (len(NAMES) + 1)}"]
    for text, (name, factor, digits) in ROWS.items():
        cells = [cell(found["values"][m].get(name, []), factor, digits) for m in NAMES]
        lines.append(f"| {text} | {' | '.join(cells)} |")
    lines += ["", "| setting | claim | difference | verdict |", "|---|---|---|---|"]
    for row in found["claims"]:
        size = _size(row).removeprefix(", ") or "-"
        lines.append(f"| {row['setting']} | {row['claim']} | {size} | {row['verdict']} |")
    return "\n".join([*lines, "", lpft_costs.table(found["costs"])])


def brief(results: dict[str, Any]) -> str:
    """Markdown of all data sets: the main numbers, then the verdicts side by side."""
    columns = [f"{data}, {name}" for data in results for name in NAMES.values()]
    lines = [f"| | {' | '.join(columns)} |", f"|{'---|' * (len(columns) + 1)}"]
    style = {name: (factor, digits) for name, factor, digits in ROWS.values()}
    for text, names in MAIN.items():
        cells = [
            " / ".join(cell(found["values"][method][name], *style[name]) for name in names)
            for found in results.values()
            for method in NAMES
        ]
        lines.append(f"| {text} | {' | '.join(cells)} |")
    lines += ["", f"| claim | {' | '.join(results)} |", f"|{'---|' * (len(results) + 1)}"]
    for rows in zip(*(found["claims"] for found in results.values()), strict=True):
        cells = [f"{row['verdict']}{_size(row)}" for row in rows]
        lines.append(f"| {rows[0]['setting']}: {rows[0]['claim']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _size(row: dict[str, Any]) -> str:
    if row["mean"] is None:
        return ""
    half = "" if row["half"] is None else f" ± {row['half']:.2g}"
    return f", {row['mean']:+.2g}{half}"


def cell(seeds: Sequence[float | None], factor: float, digits: int) -> str:
    """Mean and standard deviation over the seeds that have a number."""
    known = [factor * value for value in seeds if value is not None]
    if not known:
        return "-"
    text = f"{statistics.mean(known):.{digits}f}"
    if len(known) > 1:
        text += f" ± {statistics.stdev(known):.{digits}f}"
    return text if len(known) == len(seeds) else f"{text} ({len(known)} of {len(seeds)})"
