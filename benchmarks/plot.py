"""The figures of the README, from results/*.json: `python benchmarks/plot.py [--device cpu]`.

Nothing is measured here. A figure whose results are not there is not drawn.
"""

import argparse
import io
import sys
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from harness.report import RESULTS, cases_of, read, times_of
from roli_fast import files

FIGURES = Path(__file__).resolve().parent / "figures"
ORDER = (
    "RoLI's loop",
    "ART",
    "foolbox",
    "torchattacks",
    "torchattacks frozen",
    "PEFT",
    "ours fp32",
    "ours bf16",
)
"""From slow to fast; colours follow it: the others in greys, ours in colour."""

COLOURS = {
    "RoLI's loop": "#3f3f3f",
    "ART": "#6b6b6b",
    "foolbox": "#8d8d8d",
    "torchattacks": "#adadad",
    "torchattacks frozen": "#cfcfcf",
    "PEFT": "#b8c4cf",
    "ours fp32": "#1f77b4",
    "ours bf16": "#d95f02",
}


def speeds(report: dict[str, Any], base: str) -> dict[str, dict[str, float]]:
    """Case -> candidate -> how many times as fast as `base` it is, by the rounds they shared."""
    found: dict[str, dict[str, float]] = {}
    for case in cases_of(report):
        times = times_of(report, case)
        ratios = {name: times.ratio(base, name) for name in ORDER if name in times.seconds}
        found[case] = {name: ratio for name, ratio in ratios.items() if ratio is not None}
    return {case: ratios for case, ratios in found.items() if ratios}


def where(report: dict[str, Any]) -> str:
    """The machine in a few words."""
    machine = report["machine"]
    name = machine["device"] if machine["device"] != "cpu" else machine["cpu"]
    threads = "" if machine["device"] != "cpu" else f", {machine['threads']} threads"
    torch = machine["torch"].partition("+")[0]
    return f"{name}{threads}, torch {torch}" + (", QUICK RUN" if report["quick"] else "")


def bars(panel: Any, ratios: dict[str, dict[str, float]], base: str) -> None:
    """A group of horizontal bars a case, each with its number."""
    place, ticks = 0.0, []
    for values in ratios.values():
        first = place
        for name, value in values.items():
            panel.barh(place, value, height=0.86, color=COLOURS[name])
            panel.text(value, place, f" {value:.2f}", va="center", fontsize=7)
            place += 1
        ticks.append((first + place - 1) / 2)
        place += 0.9
    panel.set_yticks(ticks, list(ratios))
    panel.tick_params(axis="y", length=0)
    panel.invert_yaxis()
    panel.axvline(1.0, color="black", linewidth=0.8, linestyle=":")
    panel.margins(x=0.12, y=0.02)
    panel.set_xlabel(f"times as fast as {base}")
    panel.spines[["top", "right"]].set_visible(False)


def speed(device: str, folder: Path) -> Figure | None:
    """PGD-10 on five networks, and the training step of three tuning methods."""
    parts = [
        ("pgd", "torchattacks", "PGD-10 attack"),
        ("train", "RoLI's loop", "adversarial training step (PGD-7)"),
    ]
    drawn = []
    for group, base, title in parts:
        report = read(f"{group}-{device}", folder)
        if report and (ratios := speeds(report, base)):
            drawn.append((ratios, base, title, where(report)))
    if not drawn:
        return None
    counts = [sum(map(len, ratios.values())) + len(ratios) for ratios, *_ in drawn]
    size = (6.6, 1.3 + 0.5 * len(drawn) + 0.14 * sum(counts))
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    shape: Any = {"height_ratios": counts, "squeeze": False}  # bars as thick in all panels
    panels = figure.subplots(len(drawn), 1, **shape)[:, 0]
    shown: set[str] = set()
    for panel, (ratios, base, title, _) in zip(panels, drawn, strict=True):
        bars(panel, ratios, base)
        panel.set_title(title, fontsize="medium")
        shown |= {name for values in ratios.values() for name in values}
    handles = [panels[0].barh(0, 0, color=COLOURS[name]) for name in ORDER if name in shown]
    labels = [name for name in ORDER if name in shown]
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize="small")
    figure.suptitle(drawn[0][3], fontsize="small", color="#555555")
    return figure


def growth(device: str, folder: Path) -> Figure | None:
    """Time against batch, resolution, steps and depth."""
    report = read(f"growth-{device}", folder)
    if report is None or not report["rows"]:
        return None
    axes = list(dict.fromkeys(row["case"].split(",")[0] for row in report["rows"]))
    figure = Figure(figsize=(0.6 + 2.6 * len(axes), 3.1), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(axes), squeeze=False)[0]
    for panel, axis in zip(panels, axes, strict=True):
        for precision in ("fp32", "bf16"):
            rows = [row for row in report["rows"] if row["case"] == f"{axis}, {precision}"]
            rows = [row for row in rows if "ms" in row]
            if not rows:
                continue
            x, colour = [row["value"] for row in rows], COLOURS[f"ours {precision}"]
            panel.plot(x, [row["ms"] for row in rows], "o-", color=colour, ms=3.5, label=precision)
            low, high = zip(*(row["quartiles_ms"] for row in rows), strict=True)
            panel.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
        panel.set_xlabel(axis)
        panel.set_xlim(left=0)
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("ms an attack")
    panels[0].legend(fontsize="small")
    start = ", ".join(f"{key} {value}" for key, value in report["case"]["start"].items())
    title = f"PGD on ViT-tiny; where not varied: {start}\n{where(report)}"
    figure.suptitle(title, fontsize="small", color="#555555")
    return figure


def switches(device: str, folder: Path) -> Figure | None:
    """How many times as fast each switch makes an attack."""
    report = read(f"switches-{device}", folder)
    if report is None:
        return None
    rows = [row for row in report["rows"] if row.get("times_as_fast") is not None]
    if not rows:
        return None
    figure = Figure(figsize=(6.4, 1.2 + 0.3 * len(rows)), dpi=150, layout="constrained")
    panel = figure.subplots()
    for place, row in enumerate(rows):
        value = row["times_as_fast"]
        panel.barh(place, value - 1, left=1, height=0.7, color=COLOURS["ours bf16"])
        side = "left" if value >= 1 else "right"
        panel.text(value, place, f" {value:.2f} ", va="center", ha=side, fontsize=8)
    panel.set_yticks(range(len(rows)), [row["case"] for row in rows], fontsize="small")
    panel.tick_params(axis="y", length=0)
    panel.invert_yaxis()
    panel.axvline(1.0, color="black", linewidth=0.8)
    panel.margins(x=0.15)
    panel.set_xlabel("times as fast with the switch as without")
    panel.spines[["top", "right", "left"]].set_visible(False)
    figure.suptitle(where(report), fontsize="small", color="#555555")
    return figure


DRAWN = {"speed": speed, "growth": growth, "switches": switches}


def main() -> int:
    """Draw what there are results for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path, default=FIGURES)
    args = parser.parse_args()
    for name, draw in DRAWN.items():
        figure = draw(args.device, args.results)
        if figure is None:
            print(f"{name}: no results")
            continue
        png = io.BytesIO()
        FigureCanvasAgg(figure).print_png(png)
        path = args.out / f"{name}-{args.device}.png"
        files.write_bytes(path, png.getvalue())
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
