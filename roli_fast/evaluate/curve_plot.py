"""Robustness curves as a picture."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from roli_fast.errors import ArgumentError, describe
from roli_fast.files import write_bytes
from roli_fast.norms import NORMS

if TYPE_CHECKING:  # loading matplotlib takes longer than the rest of the package
    from matplotlib.figure import Figure

STYLES = ("-", "--", ":", "-.")


def plot_curves(curves: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write `draw_curves` of the same curves as a PNG; `path` is replaced in one step."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    png = io.BytesIO()
    FigureCanvasAgg(draw_curves(curves)).print_png(png)
    write_bytes(path, png.getvalue())


def draw_curves(curves: Sequence[Mapping[str, Any]]) -> "Figure":
    """Accuracy in % against the radius, with its Wilson interval as a band.

    One panel a norm, side by side, as their radii cannot be compared; in all of them a name has one
    colour and an attack one style of line. The figure is matplotlib's, made without pyplot: no
    window system is asked for, and no figure of the caller changes.

    Args:
        curves: what `Curve.as_json` returns, or the same read from a file.

    Raises:
        ArgumentError: there is no curve.
    """
    from matplotlib.figure import Figure

    if not curves:
        raise ArgumentError(describe("curves", "at least one curve", "none"))
    norms = list(dict.fromkeys(curve["norm"] for curve in curves))
    colours = _numbered(curves, "name", [f"C{i}" for i in range(10)])
    styles = _numbered(curves, "attack", STYLES)
    figure = Figure(figsize=(1.2 + 4.4 * len(norms), 4.2), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(norms), sharey=True, squeeze=False)[0]
    for panel, norm in zip(panels, norms, strict=True):
        for curve in (curve for curve in curves if curve["norm"] == norm):
            _draw(panel, curve, colours[curve["name"]], styles[curve["attack"]])
        unit = NORMS[norm].unit
        panel.set_xlabel(f"{norm} radius" + (f", in 1/{unit:g}" if unit != 1 else ""))
        panel.set_xlim(left=0)
        panel.set_ylim(0, 100)
        panel.grid(alpha=0.3)
        panel.legend(loc="upper right", fontsize="small", handlelength=3)
    panels[0].set_ylabel("accuracy in %")
    figure.suptitle(_title(curves), fontsize="medium")
    return figure


def _numbered(
    curves: Sequence[Mapping[str, Any]], key: str, looks: Sequence[str]
) -> dict[str, str]:
    """The first value of `key` gets the first look, and so on; they repeat."""
    values = dict.fromkeys(curve[key] for curve in curves)
    return {value: looks[i % len(looks)] for i, value in enumerate(values)}


def _draw(panel: Any, curve: Mapping[str, Any], colour: str, style: str) -> None:
    points = curve["points"]
    radii = [point["eps"] * NORMS[curve["norm"]].unit for point in points]
    low, middle, high = (
        [100 * point[key] for point in points] for key in ("low", "accuracy", "high")
    )
    name = curve["name"]
    label = name if name == curve["attack"] else f"{name}, {curve['attack']}"
    line = dict(color=colour, linestyle=style, marker="o", markersize=3.5)
    panel.plot(radii, middle, **line, label=label, clip_on=False, zorder=3)
    panel.fill_between(radii, low, high, color=colour, alpha=0.18, linewidth=0)


def _title(curves: Sequence[Mapping[str, Any]]) -> str:
    counts = sorted({curve["images"] for curve in curves})
    images = f"{counts[0]} images" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} images"
    levels = sorted({curve["level"] for curve in curves})
    return f"{images}; band: {' and '.join(f'{100 * level:g} %' for level in levels)} interval"
