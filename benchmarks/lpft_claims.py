"""What the paper says of LP-FT, and what may hold of RoLI, as differences of measured numbers.

Tomihari & Sato (NeurIPS 2024, arXiv:2405.16747) compare FT with LP-FT on clean data; RanLI and
RoLI are their adversarial forms. A claim is a number that should be positive, one for each seed. It
holds or fails where the 95 % interval of its mean (Student's t over the seeds, each claim for
itself) has one sign, and is undecided otherwise; one seed decides nothing.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.stats import t as student

Seeds = list[float | None]
"""One number for each seed; None where it is not defined."""

Values = Mapping[str, Mapping[str, Seeds]]
"""method -> quantity -> seeds."""

HARDLY = 0.2
"""The relative change of a norm that counts as hardly any: the paper's largest is 17 % (SST-2),
but for a probe that collapsed (WSC)."""


@dataclass(frozen=True)
class Claim:
    """A statement, where it is made, and the number that is positive where it is true."""

    setting: str
    statement: str
    number: Callable[[Values], Seeds]

    def judged(self, values: Values) -> dict[str, Any]:
        """The claim with its numbers and what they say, as a tree for a JSON file."""
        found = self.number(values)
        return {"setting": self.setting, "claim": self.statement, "seeds": found, **verdict(found)}


def verdict(differences: Sequence[float | None]) -> dict[str, Any]:
    """ "mean", "half" (of the 95 % interval; None for one seed) and "verdict"."""
    if not differences or any(value is None or not math.isfinite(value) for value in differences):
        return {"mean": None, "half": None, "verdict": "undecided"}
    known = [value for value in differences if value is not None]
    mean, count = statistics.mean(known), len(known)
    if count < 2:
        return {"mean": mean, "half": None, "verdict": "undecided"}
    quantile = float(student.ppf(0.975, count - 1))
    half = quantile * statistics.stdev(known) / math.sqrt(count)
    said = "holds" if mean > half else "fails" if mean < -half else "undecided"
    return {"mean": mean, "half": half, "verdict": said}


def combined(function: Callable[..., float], *columns: Seeds) -> Seeds:
    """The function of each seed's numbers; None where one is, or where it divides by zero."""

    def one(numbers: tuple[float | None, ...]) -> float | None:
        try:
            return None if None in numbers else function(*numbers)
        except ZeroDivisionError:
            return None

    return [one(numbers) for numbers in zip(*columns, strict=True)]


def less(first: Seeds, second: Seeds) -> Seeds:
    """first - second."""
    return combined(lambda a, b: a - b, first, second)


@dataclass(frozen=True)
class Pair:
    """The same fine-tune from a fresh head and from a probed one, clean or adversarial."""

    fresh: str
    probed: str
    kind: str

    def claims(self) -> list[Claim]:
        """What the paper says of its pair, said of this one."""
        fresh, probed, kind = self.fresh, self.probed, self.kind

        def smaller(quantity: str) -> Callable[[Values], Seeds]:
            return lambda v: less(v[fresh][quantity], v[probed][quantity])

        def larger(quantity: str) -> Callable[[Values], Seeds]:
            return lambda v: less(v[probed][quantity], v[fresh][quantity])

        def steady(v: Values) -> Seeds:
            own = v[probed]["norm_start"], v[probed]["norm_end"]
            return combined(lambda start, end: HARDLY - abs(end / start - 1), *own)

        accuracy = "clean" if kind == "clean" else "robust_margin"
        rows: list[tuple[str, Callable[[Values], Seeds]]] = [
            (
                "the probe makes the head larger",
                lambda v: less(v[probed]["norm_start"], v[probed]["norm_fresh"]),
            ),
            (f"fine-tuning changes its norm by less than {HARDLY:.0%}", steady),
            ("a smaller residual when the fine-tune starts", smaller(f"residual_{kind}")),
            ("a larger FT ratio", larger(f"ft_ratio_{kind}")),
            ("the first step moves features less per logit", smaller(f"per_logit_{kind}")),
            ("features change less", smaller(f"drift_{kind}")),
            ("a higher accuracy", larger(accuracy)),
            ("less well calibrated as it is", larger(f"ece_{kind}")),
            (
                "better calibrated by a temperature",
                lambda v: less(v[probed][f"ece_{kind}"], v[probed][f"ece_{kind}_after"]),
            ),
        ]
        if kind != "clean":
            rows.append(("features of clean images change less", smaller("drift_clean")))
            rows.append(("a higher clean accuracy", larger("clean")))
        where = f"{kind}: {NAMES[probed]} against {NAMES[fresh]}"
        return [Claim(where, statement, number) for statement, number in rows]


NAMES = {"ft": "FT", "lp_ft": "LP-FT", "ranli": "RanLI", "roli": "RoLI"}

CLEAN, ADVERSARIAL = Pair("ft", "lp_ft", "clean"), Pair("ranli", "roli", "adversarial")


def removed(pair: Pair) -> Callable[[Values], Seeds]:
    """The share of the residual that the probe takes away."""
    name = f"residual_{pair.kind}"
    return lambda v: combined(lambda a, b: 1 - b / a, v[pair.fresh][name], v[pair.probed][name])


def removed_cleanly(v: Values) -> Seeds:
    """The same of RoLI's probe without its attack."""
    own = v["clean_probe"]
    return combined(lambda a, b: 1 - b / a, own["residual_start"], own["residual_end"])


HYPOTHESES = (
    Claim(
        "hypothesis a",
        "adversarial probing ends with a smaller head than clean L-BFGS",
        lambda v: less(v["lp_ft"]["norm_start"], v["roli"]["norm_start"]),
    ),
    Claim(
        "hypothesis a",
        "adversarial probing ends with a smaller head than as many clean epochs",
        lambda v: less(v["clean_probe"]["norm_end"], v["roli"]["norm_start"]),
    ),
    Claim(
        "hypothesis b",
        "adversarial probing takes away a smaller share of the residual than clean L-BFGS",
        lambda v: less(removed(CLEAN)(v), removed(ADVERSARIAL)(v)),
    ),
    Claim(
        "hypothesis b",
        "adversarial probing takes away a smaller share of the residual than as many clean epochs",
        lambda v: less(removed_cleanly(v), removed(ADVERSARIAL)(v)),
    ),
    Claim(
        "hypothesis c",
        "RoLI: with the clean temperature ECE under attack stays above clean ECE",
        lambda v: less(v["roli"]["ece_adversarial_borrowed"], v["roli"]["ece_clean_after"]),
    ),
    Claim(
        "hypothesis c",
        "LP-FT: with the clean temperature ECE under attack stays above clean ECE",
        lambda v: less(v["lp_ft"]["ece_adversarial_borrowed"], v["lp_ft"]["ece_clean_after"]),
    ),
)


def judge(values: Values) -> list[dict[str, Any]]:
    """All claims and hypotheses with their numbers and verdicts."""
    claims = [*CLEAN.claims(), *ADVERSARIAL.claims(), *HYPOTHESES]
    return [claim.judged(values) for claim in claims]
