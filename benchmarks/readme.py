"""Writes the README's figures from results/*.json: `python benchmarks/readme.py [--check]`.

A block stands between `<!-- NAME -->` and `<!-- end -->`; nothing inside it is typed by hand.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

from roli_fast.train.summary import table

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def quickstart() -> str:
    """The table of a demo run, from the summary.json it left."""
    return f"```\n{table(_read('quickstart'))}\n```"


def ops_cpu() -> str:
    """The fused step beside what one would otherwise write."""
    results = _read("ops-cpu")
    machine = results["machine"]
    rows = [name for name in results if name != "machine" and "x4x4" not in name]
    lines = ["| op, shape, dtype | native | eager | inductor | copy of the same bytes |"]
    lines.append("|---|---|---|---|---|")
    for name in rows:
        cell, times = results[name], results[name]["times_native"]
        others = " | ".join(f"{times[key]:.2f}x" for key in ("eager", "inductor", "copy"))
        lines.append(f"| {name} | {cell['median_us']['native'] / 1000:.3f} ms | {others} |")
    lines.append("")
    lines.append(
        f"Times of the others in multiples of native's: {machine['threads']} threads of a CPU at "
        f"{machine['build']['cpu_level']}, torch {machine['torch']}, one interleaved run, medians "
        "(`make bench-ops`)."
    )
    return "\n".join(lines)


def _read(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


BLOCKS = {"quickstart": quickstart, "ops-cpu": ops_cpu}


def rendered(text: str) -> str:
    """`text` with every block made anew."""
    for name, make in BLOCKS.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.S)
        if len(pattern.findall(text)) != 1:
            raise SystemExit(f"README.md: expected one block <!-- {name} --> ... <!-- end -->")
        block = f"{make()}\n"
        text = pattern.sub(lambda match, block=block: match[1] + block + match[2], text)
    return text


def main() -> int:
    """Rewrite the README, or with --check say whether it is what the results give."""
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    new = rendered(text)
    if "--check" in sys.argv[1:]:
        return int(new != text)
    readme.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
