"""What a group found: rows, targets, the machine; as JSON and as the lines of the table."""

import importlib.metadata
import json
import os
import platform
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from harness.timing import Times
from roli_fast import files, ops

RESULTS = Path(__file__).resolve().parent.parent / "results"
VERSIONS = (
    "roli-fast torch torchvision timm peft torchattacks foolbox adversarial-robustness-toolbox"
).split()


@dataclass(frozen=True)
class Options:
    """What the command line says to every group.

    `quick` shrinks networks, batches and rounds until nothing takes a second: it shows that a group
    works, its times mean nothing. `scale` multiplies the budget of every case.
    """

    device: str = "cpu"
    threads: int = 1
    quick: bool = False
    scale: float = 1.0
    weights: str = ""
    root: str = ""
    images: int = 200


@dataclass
class Report:
    """Filled by a group, case by case; printed as it grows and saved after every case."""

    group: str
    options: Options
    path: Path | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)
    targets: list[dict[str, Any]] = field(default_factory=list)
    case: dict[str, Any] = field(default_factory=dict)
    """What else says how the numbers were made."""
    extra: dict[str, Any] = field(default_factory=dict)
    """What a group keeps beside the rows."""
    machine: dict[str, Any] = field(default_factory=dict)
    timed: tuple[Times, str] | None = None
    """The last rounds that were measured, and which candidate is their base."""

    def __post_init__(self) -> None:
        self.machine = machine(self.options.device, self.options.threads)

    def add(self, case: str, times: Times, base: str, columns: dict[str, dict[str, Any]]) -> None:
        """A row for every candidate of a case, `columns` (name -> further values) included.

        A candidate that has columns alone, "note" say, was not run. `times_base` is the median of
        its seconds over those of `base` in the same round.
        """
        self.timed = times, base
        for name in dict.fromkeys([*times.seconds, *columns]):
            row: dict[str, Any] = {"case": case, "name": name}
            if name in times.seconds:
                row["ms"] = rounded(1e3 * (times.median(name) or 0.0))
                row["quartiles_ms"] = [rounded(1e3 * q) for q in times.quartiles(name)]
                row["rounds_ms"] = [rounded(1e3 * t, 6) for t in times.seconds[name]]
                row["base"], row["times_base"] = base, rounded(times.ratio(name, base))
            self.add_row(row | columns.get(name, {}))
        self.save()

    def add_row(self, row: dict[str, Any]) -> None:
        """One more row, printed at once."""
        self.rows.append(row)
        print(line(self.group, row), flush=True)

    def target(
        self,
        what: str,
        value: float | None,
        *,
        at_least: float | None = None,
        at_most: float | None = None,
    ) -> None:
        """What was aimed at; what was not measured, or quickly, is neither met nor missed."""
        found = verdict(what, value, at_least=at_least, at_most=at_most)
        self.targets.append(found | ({"met": None} if self.options.quick else {}))
        self.save()

    def as_json(self) -> dict[str, Any]:
        """The whole result file."""
        return {
            "group": self.group,
            "quick": self.options.quick,
            "machine": self.machine,
            "case": self.case,
            **self.extra,
            "rows": self.rows,
            "targets": self.targets,
        }

    def save(self) -> None:
        """Write what there is so far."""
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps(self.as_json(), indent=1) + "\n"
            files.write_bytes(self.path, text.encode())


def verdict(
    what: str,
    value: float | None,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
) -> dict[str, Any]:
    """A target as it stands in the JSON; exactly one of the two limits is given."""
    if (at_least is None) == (at_most is None):
        raise ValueError("a target has one limit: at_least or at_most")
    met = None
    if value is not None:
        met = value >= at_least if at_least is not None else value <= (at_most or 0.0)
    sense, limit = (">=", at_least) if at_least is not None else ("<=", at_most)
    return {"what": what, "value": rounded(value), "sense": sense, "limit": limit, "met": met}


def rounded(value: float | None, digits: int = 4) -> Any:
    """To so many significant digits."""
    return None if value is None else float(f"{value:.{digits}g}")


def machine(device: str, threads: int) -> dict[str, Any]:
    """Where and with what the numbers were taken."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    models = [entry.split(":")[1].strip() for entry in lines if entry.startswith("model name")]
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "cpu": models[0] if models else platform.processor(),
        "cpus": os.cpu_count(),
        "threads": threads,
        "load_before": [round(load, 2) for load in os.getloadavg()],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "versions": {name: version for name in VERSIONS if (version := _version(name))},
        "backend": ops.backend("linf_step_", device, torch.float32).name,
        "build": ops.build_info(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def times_of(report: dict[str, Any], case: str) -> Times:
    """The rounds of a case, from what its result file holds."""
    rows = [row for row in report["rows"] if row["case"] == case and "rounds_ms" in row]
    return Times({row["name"]: [ms / 1e3 for ms in row["rounds_ms"]] for row in rows})


def cases_of(report: dict[str, Any]) -> list[str]:
    """The cases of a result file that have times, in order."""
    return list(dict.fromkeys(row["case"] for row in report["rows"] if "rounds_ms" in row))


def read(name: str, folder: Path = RESULTS) -> dict[str, Any] | None:
    """A result file; None if there is none."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def line(group: str, row: dict[str, Any]) -> str:
    """A row of the table."""
    text = f"{group:10} {row['case']:34} {row['name']:20}"
    if "ms" not in row and "note" in row:
        return f"{text} {row['note']}"
    cells = [f"{row['ms']:>9.6g} ms" if "ms" in row else " " * 12]
    if "times_base" in row:
        cells.append(f"{row['times_base']:>7.3g} x {row['base']}")
    if "quartiles_ms" in row:
        cells.append("[{:.4g}, {:.4g}]".format(*row["quartiles_ms"]))
    if "forwards" in row:
        cells.append(f"{row['forwards']}/{row['backwards']} passes")
    if "gflops" in row:
        cells.append(f"{row['gflops']:.4g} GFLOP/s")
    if "roofline" in row:
        cells.append(f"{100 * row['roofline']:.0f} % of GEMM")
    cells += [
        f"{row[key]:.4g} {unit}"
        for key, unit in (
            ("activations_mb", "MB kept"),
            ("peak_mb", "MB peak"),
            ("images_per_second", "images/s"),
        )
        if row.get(key) is not None
    ]
    if "waiting" in row:
        cells.append(f"{100 * row['waiting']:.1f} % waiting")
    if "note" in row:
        cells.append(row["note"])
    return f"{text} {'  '.join(cells)}".rstrip()


def target_line(group: str, target: dict[str, Any]) -> str:
    """A target and what came of it."""
    unknown = "not measured" if target["value"] is None else "not judged"
    said = {True: "met", False: "MISSED", None: unknown}[target["met"]]
    value = "-" if target["value"] is None else f"{target['value']:.4g}"
    text = f"{group:10} {target['what']:74} {value:>8} {target['sense']} {target['limit']:<7.4g}"
    return f"{text} {said}"


def table(reports: list[dict[str, Any]]) -> str:
    """All groups, then all targets, from what their result files hold."""
    lines: list[str] = []
    for report in reports:
        where = report["machine"]
        load = where["load_before"][0]
        lines.append(
            f"\n{report['group']}: {where['device']}, {where['threads']} threads, "
            f"torch {where['torch']}, {where['backend']} ops, load {load} before"
            + (", QUICK: times mean nothing" if report["quick"] else "")
        )
        lines += [line(report["group"], row) for row in report["rows"]]
    lines.append("\ntargets")
    lines += [target_line(r["group"], goal) for r in reports for goal in r["targets"]]
    return "\n".join(lines)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    print(
        table(
            [found for path in sorted(folder.glob("*.json")) if (found := read(path.stem, folder))]
        )
    )
