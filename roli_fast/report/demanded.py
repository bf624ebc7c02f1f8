"""What `python -m roli_fast.analyze` adds on demand: one-step prediction, head scale, kernel."""

from collections.abc import Iterator, Sequence

from roli_fast.report.blocks import Block, Chart, Charts, Fold, Missing, Section, Source, Table
from roli_fast.report.read import Tree, values
from roli_fast.report.subjects import CONDITIONS, Page, Subject, stage_label, steps
from roli_fast.report.svg import Axis, Line, lines
from roli_fast.report.text import given, over_seeds, percent_over_seeds, whole

TERMS_STEP = (
    (
        "FT ratio",
        "share of the one-step change of the logits that goes through the backbone, "
        "‖F part‖ / ‖F + P part‖, mean over the validation images; above 1 the two parts cancel",
    ),
    ("predicted", "mean ‖dφ‖ of one gradient step by one Jacobian product, at the rate beside it"),
    ("actual", "mean ‖φ(θ + step) − φ(θ)‖ of the same step, taken"),
    ("relative error", "of the predicted change of the features against the actual one"),
)

TERMS_KERNEL = (
    ("P", "kernel of the head's parameters; F: of the backbone's, through the head; NTK: P + F"),
    ("rank", "numerical, of the matrix of all images and classes"),
    (
        "accuracy",
        "argmax over classes of logistic regression on the kernel, fitted to the training images; "
        "trivial: always the most frequent class, on the validation images",
    ),
)


def demanded(page: Page) -> Section:
    """Tables of what is there; what is not is named with its command."""
    blocks: list[Block] = []
    subjects = [s for s in page.subjects if s.analyses]
    if not subjects:
        return Section("ntk", "")
    sources = page.of_seeds(subjects, "analysis.json")
    parts = {
        "--ft_ratio": ("the FT ratio and the predicted change of the features", _step_table),
        "--head_scale": ("what a larger head would do", _scale_table),
        "--kernel": ("the tangent kernel and its two parts (slow)", _kernel_blocks),
    }
    lacking = []
    for flag, (what, make) in parts.items():
        made = make(subjects, sources)
        blocks += made
        if not made:
            lacking.append((what, flag))
    if lacking:
        what = f"Not computed: {'; '.join(what for what, _ in lacking)}."
        flags = " ".join(flag for _, flag in lacking)
        blocks.append(Missing(what, f"python -m roli_fast.analyze {page.folders} {flags}"))
    return Section("ntk", "One step of training, linearised", blocks, "One step")


SCALED = ("residual", "features", "logits_F", "ft_ratio", "fixed_features", "fixed_logits_F")
"""What is shown of a row of head_scale."""


def _own(subjects: Sequence[Subject], key: str) -> Iterator[tuple[Subject, str, list[Tree]]]:
    """The stages of which some seed has the part `key`."""
    for subject, name, own in steps(subjects):
        if having := [stage for stage in own if stage.get(key)]:
            yield subject, name, having


def _step_table(subjects: Sequence[Subject], sources: Sequence[Source]) -> list[Block]:
    rows, own_rows = [], []
    for subject, name, own in _own(subjects, "one_step"):
        for condition, word in CONDITIONS.items():
            found = [s["one_step"][condition] for s in own if s["one_step"].get(condition)]
            if not found:
                continue
            first = [stage_label(subject, name), word]
            rate, ratio = given(found[0].get("lr")), over_seeds(values(found, "ft_ratio"))
            rows.append([*first, ratio, rate, *_prediction(found), str(len(found))])
            updates = [f["first_update"] for f in found if f.get("first_update")]
            if updates:
                optimizer = str(updates[0].get("optimizer"))
                ratio = over_seeds(values(updates, "ft_ratio"))
                cells = [optimizer, ratio, rate, *_prediction(updates), str(len(updates))]
                own_rows.append([*first, *cells])
    if not rows:
        return []
    ends = ("predicted", "actual", "relative error", "seeds")
    caption = (
        "One plain gradient step on the mean loss of the analysed training images, from where each "
        "stage began, and what it does to the features of validation images; where these are "
        "attacked, the training images are too. It speaks of that step alone: attacks and features "
        "move on."
    )
    head = ("stage", "images", "FT ratio", "rate", *ends)
    blocks: list[Block] = [Table(caption, head, rows, sources, TERMS_STEP, words=(1,))]
    if own_rows:
        also = (
            "The same for a step of the stage's own optimiser from its first state, at the full "
            "rate: training's first update is that much smaller where it warms up."
        )
        head = ("stage", "images", "optimiser", "FT ratio", "rate", *ends)
        table = Table(also, head, own_rows, sources, words=(1, 2))
        blocks.append(Fold("A first step of the stage's own optimiser", [table]))
    return blocks


def _prediction(found: Sequence[Tree]) -> list[str]:
    sizes = [over_seeds(values(found, key)) for key in ("predicted", "actual")]
    return [*sizes, percent_over_seeds(values(found, "relative_error"))]


def _scale_table(subjects: Sequence[Subject], sources: Sequence[Source]) -> list[Block]:
    rows = []
    for subject, name, own in _own(subjects, "head_scale"):
        for scale in dict.fromkeys(row["scale"] for s in own for row in s["head_scale"]):
            found = [row for s in own for row in s["head_scale"] if row["scale"] == scale]
            cells = [over_seeds(values(found, key)) for key in SCALED]
            rows.append([stage_label(subject, name), f"× {given(scale)}", *cells])
    if not rows:
        return []
    head = (
        "stage",
        "head",
        "residual",
        "features",
        "logits through F",
        "FT ratio",
        "features, residual held",
        "logits through F, residual held",
    )
    caption = (
        "Predicted change by the same step from a head that is scaled, with the residuals that the "
        "scaled head has, and with those of the head as it is; on attacked images where the stage "
        "trains on such, on clean ones else. With residuals held the features' "
        "change grows with the scale and the logits' part F with its square."
    )
    return [Table(caption, head, rows, sources, words=(1,))]


def _kernel_blocks(subjects: Sequence[Subject], sources: Sequence[Source]) -> list[Block]:
    rows, drawn = [], []
    for subject, name, own in _own(subjects, "kernel"):
        found = [stage["kernel"] for stage in own]
        cells = []
        for part in ("P", "F", "NTK"):
            ranks = values(found, part, "rank")
            cells.append(whole(ranks[0]) if len(ranks) == 1 else over_seeds(ranks))
            cells.append(over_seeds(values(found, part, "frobenius")))
        fits = [
            percent_over_seeds(values(found, "regression", k)) for k in ("train", "test", "trivial")
        ]
        size = f"{found[0].get('images')} × {found[0].get('classes')}"
        rows.append([stage_label(subject, name), size, *cells, *fits])
        spectrum = values(found[0].get("spectrum") or ())
        points = [(float(i), v) for i, v in enumerate(spectrum, 1)]
        drawn.append(Line(stage_label(subject, name), points, subject.look, len(drawn), marks=True))
    if not rows:
        return []
    head = ["stage", "images × classes"]
    head += [f"{part} {what}" for part in ("P", "F", "NTK") for what in ("rank", "norm")]
    head += ["accuracy, training", "accuracy, validation", "trivial"]
    table = Table(
        "The kernel of clean training images where each stage began, whatever it trains on; "
        "norms are Frobenius'.",
        head,
        rows,
        sources,
        TERMS_KERNEL,
    )
    if not any(line.points for line in drawn):
        return [table]
    svg = lines(
        "Largest eigenvalues of the kernel over the largest one",
        drawn,
        Axis("eigenvalue number", low=0),
        Axis("over the largest", log=True),
    )
    caption = "Largest eigenvalues of the NTK of the first seed, over the largest one."
    keys = [
        type(s.key)(line.label, line.look, line.dash)
        for line, s in zip(drawn, [x for x, _, _ in _own(subjects, "kernel")], strict=True)
    ]
    return [table, Charts([Chart("Spectrum", svg)], caption, keys, sources)]
