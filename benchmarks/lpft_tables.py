"""The study's numbers as Markdown: the main ones of all data sets, then every verdict."""

import statistics
from collections.abc import Sequence
from typing import Any

from lpft_claims import NAMES

MAIN = {
    "clean accuracy, %": (100, 1, ("clean",)),
    "robust accuracy, %": (100, 1, ("robust",)),
    "under a scale-free attack, %": (100, 1, ("robust_margin",)),
    "head norm when the fine-tune starts": (1, 2, ("norm_start",)),
    "residual then, clean / attacked": (1, 3, ("residual_clean", "residual_adversarial")),
    "FT ratio then": (1, 3, ("ft_ratio_clean", "ft_ratio_adversarial")),
    "feature drift": (1, 2, ("drift_clean", "drift_adversarial")),
    "ECE clean, %: as it is / T": (100, 1, ("ece_clean", "ece_clean_after")),
    "ECE attacked, %: as it is / own T / clean T": (
        100,
        1,
        ("ece_adversarial", "ece_adversarial_after", "ece_adversarial_borrowed"),
    ),
}
"""The rows: text -> factor, digits, quantities. The JSON has more."""


def table(results: dict[str, Any]) -> str:
    """Markdown of all data sets: the main numbers, then the verdicts side by side."""
    columns = [f"{data}, {name}" for data in results for name in NAMES.values()]
    lines = [f"| | {' | '.join(columns)} |", f"|{'---|' * (len(columns) + 1)}"]
    for text, (factor, digits, names) in MAIN.items():
        cells = [
            " / ".join(cell(found["values"][method][name], factor, digits) for name in names)
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
