"""What a clean probe solved by L-BFGS tried: how strongly its head is held small."""

from collections.abc import Sequence

from roli_fast.report.blocks import Block, Fold, Table, Text
from roli_fast.report.read import values
from roli_fast.report.subjects import Page, Subject, stage_label
from roli_fast.report.text import given, listed, over_seeds, percent_over_seeds

TERMS = (
    ("L2 strength", "c of c ‖V‖² / 2 beside the mean cross-entropy"),
    ("chosen", "seeds that took it: by validation accuracy, among equals by validation NLL"),
)


def strengths(page: Page, subjects: Sequence[Subject]) -> list[Block]:
    """One row a strength; empty where no stage was solved so."""
    rows, ends = [], []
    for subject in subjects:
        for place, name in enumerate(subject.method.stage_names):
            own = [s.stages[place] for s in subject.method.seeds if len(s.stages) > place]
            own = [stage for stage in own if stage.get("strengths")]
            grid = sorted({row["strength"] for stage in own for row in stage["strengths"]})
            label = stage_label(subject, name)
            for strength in grid:
                tried = [r for s in own for r in s["strengths"] if r["strength"] == strength]
                rows.append(
                    [
                        label,
                        given(strength),
                        over_seeds(values(tried, "head_norm")),
                        percent_over_seeds(values(tried, "validation_accuracy")),
                        over_seeds(values(tried, "validation_nll")),
                        over_seeds(values(tried, "train_loss")),
                        str(sum(stage.get("strength") == strength for stage in own)),
                    ]
                )
            if len(grid) > 1 and any(s.get("strength") in (grid[0], grid[-1]) for s in own):
                ends.append(label)
    if not rows:
        return []
    head = (
        "stage",
        "L2 strength",
        "head norm ‖V‖",
        "validation",
        "validation NLL",
        "training loss",
        "chosen",
    )
    caption = "Clean probes by L-BFGS: every strength that was tried, means over seeds."
    table = Table(caption, head, rows, page.summaries(), TERMS)
    found: list[Block] = [Fold("L2 strengths that the clean probe tried", [table])]
    if ends:
        text = (
            "took the first or last L2 strength of the grid, so its head norm is the grid's doing"
        )
        found.append(Text(f"{listed(ends)}: a seed {text}."))
    return found
