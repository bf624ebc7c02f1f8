"""Writes the tables of README.md and docs/results.md from results/*.json:
`python benchmarks/tables.py [--check]`.

A block stands between `<!-- NAME -->` and `<!-- end -->`; nothing inside it is typed by hand. A
page must have every block of its own whose results are there.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

import lpft_tables
import study
from harness.report import RESULTS, read, times_of
from plot import FIGURES, where
from roli_fast.train.summary import table
from study import percent

ROOT = Path(__file__).resolve().parent.parent
FROM_DOCS = f"../{FIGURES.relative_to(ROOT)}"
"""Where figures lie, seen from docs/."""


def quickstart() -> str:
    """The table of a demo run, from the summary.json it left."""
    return f"```\n{table(_read('quickstart'))}\n```"


def ops_cpu() -> str:
    """The fused ops beside what one would otherwise write."""
    results = _read("ops-cpu")
    machine = results["machine"]
    rows = [k for k, row in results.items() if isinstance(row, dict) and "times_native" in row]
    names = list(dict.fromkeys(name.split()[0] for name in rows))
    small, large = "64x3x32x32", "64x3x224x224"
    lines = [
        f"| op, fp32 | {small} | eager | inductor | {large} | eager | inductor | copy | bf16 |"
    ]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for op in names:
        cells = [*_cells(results[f"{op} {small} float32"], "eager", "inductor")]
        cells += _cells(results[f"{op} {large} float32"], "eager", "inductor", "copy")
        cells.append(f"{results[f'{op} bf16 beside fp32']['times_native']['float32']:.1f}x")
        lines.append(f"| `{op}` | {' | '.join(cells)} |")
    lines.append("")
    lines.append(
        "Times of the op, and how many times longer the others take: eager torch as attack "
        "libraries write it, torch.compile, a copy of as many bytes as the op must move; last, how "
        f"many times faster the op is in bf16. {machine['threads']} threads of a CPU at "
        f"{machine['build']['cpu_level']}, torch {machine['torch']}, rows interleaved, medians "
        "(`make bench`; all rows: benchmarks/results/ops-cpu.json)."
    )
    return "\n".join(lines)


def tuning() -> str:
    """Every tuning method after standard and after robust pretraining."""
    results = _read("tuning")
    standard, robust = (results[f"Swin, {kind} pretraining"] for kind in ("standard", "robust"))
    columns = [(standard, "roli"), (standard, "ranli"), (robust, "roli"), (robust, "ranli")]
    lines = ["| tuning | trainable | standard, RoLI | RanLI | robust, RoLI | RanLI |"]
    lines.append("|---|---|---|---|---|---|")
    for name, row in robust.items():
        trainable = row["methods"]["roli"]["stages"][-1]["trainable_parameters"]
        cells = [f"`{name}`", f"{trainable:,}"]
        for rows, method in columns:
            found = rows[name]["methods"][method]["accuracy"]
            cells.append(f"{percent(found['clean'])} / {percent(found['pgd-10'])}")
        lines.append(f"| {' | '.join(cells)} |")
    first = next(iter(robust.values()))
    lines.append("")
    lines.append(
        f"Clean / PGD-10 accuracy in percent on {first['test_images']} test images of Caltech-101, "
        f"mean and standard deviation over {len(first['seeds'])} seeds, linf 4/255. A Swin of "
        "534 thousand parameters at 32x32, pretrained for 20 epochs on 99 classes of ImageNet, "
        "clean or by N-FGSM; then 6 images a class, 2 epochs of probing and 4 of fine-tuning, or 6 "
        "of RanLI. One rate a method for all columns, not tuned. All rows, with a ViT, costs and "
        "single seeds: benchmarks/results/tuning.json (`python benchmarks/study.py tuning`)."
    )
    return "\n".join(lines)


NETWORKS = {"autoattack-cpu": "1.2 M", "autoattack-small-cpu": "0.3 M"}
"""Results of AutoAttack -> parameters of the network."""


def autoattack() -> str:
    """Full AutoAttack beside torchattacks, part by part."""
    lines, images = [], 0
    for file, size in NETWORKS.items():
        results = read(file)
        if results is None:
            continue
        norms = {norm: results[norm] for norm in results["case"]["eps"] if norm in results}
        parts = next(iter(norms.values()))["details"]["parts"]
        images = results["case"]["images"]
        if not lines:
            lines.append(f"| times as long as ours in fp32 | {' | '.join(parts)} | all | robust |")
            lines.append(f"|{'---|' * (len(parts) + 3)}")
        for norm, result in norms.items():
            lines += _against_usual(result, f"{size}, {norm}")
    lines.append("")
    lines.append(
        f"Standard AutoAttack (linf 8/255, l2 0.5) on {images} real CIFAR-10 images and two "
        "adversarially trained ResNets of so many parameters, one CPU thread, batches interleaved "
        "in one process, weights frozen for all; other work on the second core, and the larger "
        "network before FAB had its own kernel (benchmarks/results/autoattack-cpu.json, "
        "autoattack-small-cpu.json)."
    )
    return "\n".join(lines)


def _against_usual(result: dict[str, Any], case: str) -> list[str]:
    mine, lines = result["roli_fast"], []
    names = {"usual": "torchattacks", "full batch": "fooled images stay", "bf16": "search in bf16"}
    for key, name in names.items():
        row = result[key]
        cells = [f"{a / b:.2f}" for a, b in zip(row["by_part"], mine["by_part"], strict=True)]
        cells += [f"{row['times_ours']:.2f}", f"{100 * row['robust_accuracy']:.1f} %"]
        lines.append(f"| {case}: {name} | {' | '.join(cells)} |")
    seconds = " | ".join(f"{s:.0f}" for s in mine["by_part"])
    accuracy = f"{100 * mine['robust_accuracy']:.1f} %"
    lines.append(f"| {case}: ours, seconds | {seconds} | {mine['seconds']:.0f} | {accuracy} |")
    return lines


PEERS = ("torchattacks", "torchattacks frozen", "foolbox", "ART", "RoLI's loop")


def speed() -> str | None:
    """PGD beside the libraries as one would use them, for README."""
    attacks = read("pgd-cpu")
    if attacks is None:
        return None
    columns = {
        "ours, bf16": "ours bf16",
        "torchattacks, weights frozen": "torchattacks frozen",
        "foolbox": "foolbox",
        "ART": "ART",
        "RoLI's loop": "RoLI's loop",
    }
    lines = [f"| PGD-10 | ours, fp32 | {' | '.join(columns)} |", f"|{'---|' * (len(columns) + 2)}"]
    for case in attacks["case"]:
        rows = {row["name"]: row for row in attacks["rows"] if row["case"] == case}
        ratios = [times_of(attacks, case).ratio(name, "ours fp32") for name in columns.values()]
        cells = [_milliseconds(rows["ours fp32"]), *map(_times, ratios)]
        lines.append(f"| {case} | {' | '.join(cells)} |")
    lines.append("")
    lines.append(
        f"Others in multiples of our time in fp32; b is the batch. {where(attacks)}, random "
        "weights, rows of a network interleaved (`make bench`). What makes the difference is that "
        "weights need no gradient in an attack; torchattacks has it once one freezes them."
    )
    return "\n".join(lines)


def throughput() -> str | None:
    """PGD and training steps beside the libraries."""
    attacks, updates = read("pgd-cpu"), read("train-cpu")
    if attacks is None or updates is None:
        return None
    lines = [f"| PGD-10 | ours | {' | '.join(PEERS)} | ours, bf16 | of a bf16 GEMM |"]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for case in attacks["case"]:
        rows = {row["name"]: row for row in attacks["rows"] if row["case"] == case}
        cells = [_milliseconds(rows["ours fp32"])]
        cells += [_times(times_of(attacks, case).ratio(name, "ours fp32")) for name in PEERS]
        cells.append(_times(times_of(attacks, case).ratio("ours bf16", "ours fp32")))
        cells.append(f"{100 * rows['ours bf16']['roofline']:.0f} %")
        lines.append(f"| {case} | {' | '.join(cells)} |")
    lines += ["", "| training step, PGD-7 | ours | ours, bf16 | RoLI's loop | PEFT |"]
    lines.append("|---|---|---|---|---|")
    for case in updates["case"]:
        rows = {row["name"]: row for row in updates["rows"] if row["case"] == case}
        others = ("ours bf16", "RoLI's loop", "PEFT")
        cells = [_milliseconds(rows["ours fp32"])]
        cells += [_times(times_of(updates, case).ratio(name, "ours fp32")) for name in others]
        lines.append(f"| {case} | {' | '.join(cells)} |")
    lines += ["", f"![speed beside the libraries]({FROM_DOCS}/speed-cpu.png)", ""]
    lines.append(
        "Ours in fp32, and the others in multiples of that time; b is the batch. "
        f"{where(attacks)}, random weights, all rows of a network interleaved, medians of the "
        "ratios within a round "
        "(`make bench`; benchmarks/results/pgd-cpu.json, train-cpu.json)."
    )
    return "\n".join(lines)


def switches() -> str | None:
    """Each switch of the engine, predicted and measured."""
    results = read("switches-cpu")
    if results is None:
        return None
    lines = ["| switch | expected | times as fast |", "|---|---|---|"]
    for row in results["rows"]:
        if row["name"] == "on" and row.get("times_as_fast") is not None:
            lines.append(f"| {row['case']} | {row['expected']} | {row['times_as_fast']:.2f} |")
    lines += ["", f"PGD-5; {where(results)} (benchmarks/results/switches-cpu.json)."]
    return "\n".join(lines)


def growth() -> str | None:
    """The figure of how time grows, and what it shows."""
    results = read("growth-cpu")
    if results is None:
        return None
    figure = f"{FROM_DOCS}/growth-cpu.png"
    start = ", ".join(f"{axis} {value}" for axis, value in results["case"]["start"].items())
    return (
        f"![time of an attack against batch, resolution, steps and depth]({figure})\n\n"
        f"PGD on a small ViT ({start} where not varied): bf16 pays once a pass has enough to "
        "multiply. All points of an axis in the same rounds (benchmarks/results/growth-cpu.json)."
    )


def memory() -> str | None:
    """Peak memory beside the libraries."""
    results = read("memory-cpu")
    if results is None:
        return None
    cases: dict[str, dict[str, float]] = {}
    for row in results["rows"]:
        if row.get("peak_mb"):
            cases.setdefault(row["case"], {})[row["name"]] = row["peak_mb"]
    names = list(dict.fromkeys(name for rows in cases.values() for name in rows))
    lines = [f"| peak memory, MB | {' | '.join(names)} |", f"|{'---|' * (len(names) + 1)}"]
    for case, rows in cases.items():
        cells = [f"{rows[name]:.0f}" if name in rows else "-" for name in names]
        lines.append(f"| {case} | {' | '.join(cells)} |")
    lines += ["", "ViT-S at batch 8, each in a process of its own, what it imports included."]
    return "\n".join(lines)


def endtoend() -> str | None:
    """Images a second of whole runs."""
    results = read("endtoend-cpu")
    if results is None:
        return None
    lines = ["| `python -m roli_fast.train` | images/s | waiting for images |", "|---|---|---|"]
    for row in results["rows"]:
        cells = [f"{row['images_per_second']:.0f}", f"{100 * row['waiting']:.1f} % of the time"]
        lines.append(f"| {row['case']}, {row['name']} | {' | '.join(cells)} |")
    lines += ["", f"PGD-7, a small ViT at 32x32; {where(results)}."]
    return "\n".join(lines)


def several_norms() -> str | None:
    """Objectives for several norms beside each other."""
    results = read("several-norms")
    if results is None:
        return None
    rows = results["CIFAR-10"]
    first = next(iter(rows.values()))
    return (
        f"{study.table(rows, 'AT-linf')}\n\n"
        f"Accuracy in percent on {first['test_images']} test images of CIFAR-10 under APGD-20 "
        "(linf 8/255, l2 0.5, l1 12), mean and standard deviation over "
        f"{len(first['seeds'])} seeds: a ResNet of 0.3 million parameters, robust in linf, "
        "fine-tuned for three epochs on 3,000 images with ten attack steps. Differences in points, "
        "paired by image, with 95 % intervals (`python benchmarks/study.py several-norms`)."
    )


def one_step() -> str | None:
    """RoLI by one step beside RoLI by PGD-7."""
    results = read("one-step")
    if results is None:
        return None
    (rows,) = results.values()
    first = next(iter(rows.values()))
    return (
        f"{study.table(rows, 'pgd-7')}\n\n"
        f"Accuracy in percent on {first['test_images']} test images of CIFAR-10, clean and under "
        "APGD-CE, then APGD-T, of ten steps each, linf 4/255; mean and standard deviation over "
        f"{len(first['seeds'])} seeds. The robust ViT of 1.2 million parameters, 500 training "
        "images, four epochs of probing and four of full fine-tuning, one rate for all; passes are "
        "forwards of one image, a backward to the weights counted twice, validation with them "
        "(`python benchmarks/study.py one-step`). Differences in points, paired by image, with 95 "
        "% intervals; seconds on one thread beside other work."
    )


def lpft() -> str | None:
    """FT, LP-FT, RanLI and RoLI, and what may explain them."""
    results = read("lpft")
    if results is None:
        return None
    sets = ", ".join(
        f"{name}: {own['settings']['images']['train']} images to train and "
        f"{own['settings']['images']['test']} to test, "
        + ", ".join(f"{norm} {eps:.3g}" for norm, eps in own["settings"]["threat"].items())
        for name, own in results.items()
    )
    seeds = len(next(iter(results.values()))["settings"]["seeds"])
    return (
        f"{lpft_tables.table(results)}\n\n"
        f"Mean and standard deviation over {seeds} seeds ({sets}), one network, one rate and as "
        "many epochs for all fine-tunes, not tuned; probes come on top. A claim is a difference "
        "that should be positive; it holds or fails where the 95 % interval over the seeds has one "
        "sign, each claim for itself. All rows: benchmarks/results/lpft.json, made by "
        "benchmarks/lpft.py."
    )


def _milliseconds(row: dict[str, Any]) -> str:
    return f"{row['ms']:.4g} ms"


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}x"


def _cells(row: dict[str, Any], *others: str) -> list[str]:
    """A row's own time, and the others' in multiples of it."""
    times = row["times_native"]
    own = f"{row['median_us']['native'] / 1000:.3g} ms"
    return [own, *(f"{times[key]:.2g}x" if key in times else "" for key in others)]


def _read(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


README = {"quickstart": quickstart, "speed": speed}
RESULTS_PAGE = {
    "throughput": throughput,
    "switches": switches,
    "growth": growth,
    "memory": memory,
    "endtoend": endtoend,
    "autoattack": autoattack,
    "ops-cpu": ops_cpu,
    "tuning": tuning,
    "several-norms": several_norms,
    "one-step": one_step,
    "lpft": lpft,
}
PAGES = {"README.md": README, "docs/results.md": RESULTS_PAGE}
"""Page -> its blocks."""


def rendered(page: str, text: str) -> str:
    """`text` of a page with every block made anew."""
    for name, make in PAGES[page].items():
        made = make()
        if made is None:
            continue
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.S)
        if len(pattern.findall(text)) != 1:
            raise SystemExit(f"{page}: expected one block <!-- {name} --> ... <!-- end -->")
        block = f"{made}\n"
        text = pattern.sub(lambda match, block=block: match[1] + block + match[2], text)
    return text


def main() -> int:
    """Rewrite the pages, or with --check say whether they are what the results give."""
    changed = False
    for page in PAGES:
        path = ROOT / page
        text = path.read_text(encoding="utf-8")
        new = rendered(page, text)
        changed |= new != text
        if "--check" not in sys.argv[1:]:
            path.write_text(new, encoding="utf-8")
    return int(changed and "--check" in sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
