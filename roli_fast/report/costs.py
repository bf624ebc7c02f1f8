"""Throughput and time of every stage, and the machine."""

from statistics import mean

from roli_fast.report.blocks import Section, Table
from roli_fast.report.read import values
from roli_fast.report.subjects import Page
from roli_fast.report.text import (
    NONE,
    duration,
    over_seeds,
    percent_over_seeds,
    whole,
)

TERMS = (
    (
        "best validation",
        "of the kept epoch: accuracy under the validation attack, or on clean "
        "images where the stage itself has no attack",
    ),
    ("images/s", "training images a second of a stage, its attacks included, validation aside"),
    ("waited for data", "share of the training time in which the loop waited for images"),
    (
        "L2 strength",
        "of a probe solved by L-BFGS: weight of ‖V‖² / 2 in the mean loss, picked by validation",
    ),
)


def costs(page: Page) -> Section:
    """The table of stages."""
    rows, strengths = [], False
    for subject in page.subjects:
        for place, name in enumerate(subject.method.stage_names):
            own = [s.stages[place] for s in subject.method.seeds if len(s.stages) > place]
            strength = values(own, "strength")
            strengths = strengths or bool(strength)
            seconds = values(own, "train_seconds")
            rows.append(
                [
                    subject.label,
                    name,
                    whole(own[0].get("epochs")),
                    whole(own[0].get("trainable_parameters")),
                    percent_over_seeds(values(own, "best_validation_accuracy")),
                    over_seeds(values(own, "train_images_per_second")),
                    duration(mean(seconds)) if seconds else NONE,
                    percent_over_seeds(values(own, "data_wait_share")),
                    over_seeds(strength),
                ]
            )
    for run in page.runs:
        if found := (run.summary or {}).get("pretrain"):
            label = f"pretraining of {run.name}" if page.several else "pretraining"
            rows.insert(
                0,
                [
                    label,
                    found["name"],
                    whole(found["epochs"]),
                    whole(found["trainable_parameters"]),
                    percent_over_seeds(values([found], "best_validation_accuracy")),
                    over_seeds(values([found], "train_images_per_second")),
                    duration(found["train_seconds"]),
                    percent_over_seeds(values([found], "data_wait_share")),
                    NONE,
                ],
            )
    if not rows:
        return Section("cost", "", ())
    head = [
        "method",
        "stage",
        "epochs",
        "trained parameters",
        "best validation",
        "images/s",
        "time",
        "waited for data",
        "L2 strength",
    ]
    if not strengths:
        head, rows = head[:-1], [row[:-1] for row in rows]
    several = any(len(s.method.seeds) > 1 for s in page.subjects)
    caption = "Every stage: " + (
        "means over seeds, ± the sample standard deviation; " if several else ""
    )
    caption += "times depend on the machine and on what else it did."
    sources = page.summaries() or [
        page.source(r, "seed-*/METHOD/stage-*/result.json") for r in page.runs
    ]
    sources += [page.source(r, "environment.json") for r in page.runs if r.environment]
    terms = TERMS if strengths else TERMS[:-1]
    return Section("cost", "Throughput", [Table(caption, head, rows, sources, terms, words=(1,))])
