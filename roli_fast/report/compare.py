"""The first part of a page on several runs: what differs, and what cannot be compared."""

from collections.abc import Iterator
from typing import Any

from roli_fast.report.blocks import Block, Fold, Section, Table, Text
from roli_fast.report.read import at
from roli_fast.report.results import headline
from roli_fast.report.subjects import Page
from roli_fast.report.text import NONE, listed

ASIDE = {"device", "threads", "workers", "checkpoint_minutes", "report", "analysis_images"}
"""Fields of the configuration that say where and how a run was carried out."""


FEW = 12
"""Differing fields that stand open; more are folded."""


def compare(page: Page) -> Section:
    """Each run in a sentence, warnings, and the fields that differ."""
    blocks: list[Block] = [Text(text, strong=True) for text in warnings(page)]
    rows = [[name, headline(run)] for name, run in zip(page.names, page.runs, strict=True)]
    sources = [page.source(run, "config.yaml") for run in page.runs]
    blocks.append(Table("The runs.", ("run", "what it is"), rows, sources, words=(1,)))
    flat = [dict(_flat(run.config)) for run in page.runs]
    fields = dict.fromkeys(name for one in flat for name in one)
    rows = [
        [name, *(one.get(name, NONE) for one in flat)]
        for name in fields
        if name.split(".")[0] not in ASIDE and len({one.get(name) for one in flat}) > 1
    ]
    if rows:
        words = tuple(range(1, len(page.runs) + 1))
        caption = "Fields of the configuration that differ; – where a run does not have it."
        table = Table(caption, ("field", *page.names), rows, sources, words=words)
        few = len(rows) <= FEW
        blocks.append(table if few else Fold(f"{len(rows)} fields that differ", [table]))
    else:
        blocks.append(Text("The configurations are the same."))
    return Section("runs", "What differs", blocks)


def warnings(page: Page) -> list[str]:
    """Why numbers of these runs may not be compared."""
    found = []
    hashes = {at(run.environment, "identity", "data test images") for run in page.runs}
    pixels = {at(run.environment, "identity", "data test pixels") for run in page.runs}
    if len(hashes) > 1 or len(pixels - {None}) > 1:
        found.append("The runs have not all the same test images: their accuracies do not compare.")
    elif None in hashes:
        found.append("environment.json does not tell whether the runs have the same test images.")
    tested = [run.summary for run in page.runs if run.summary]
    attacks = {repr((s.get("attack"), s.get("threat"))) for s in tested}
    if len(attacks) > 1:
        found.append(
            "The runs were tested by different attacks or radii: robust accuracies do not compare."
        )
    seeds = {tuple(run.config.get("seeds") or (0,)) for run in page.runs}
    if len(seeds) > 1:
        found.append("The runs have different seeds.")
    without = [name for name, run in zip(page.names, page.runs, strict=True) if not run.summary]
    if without:
        found.append(f"Not finished or not tested: {listed(without)}.")
    return found


def _flat(tree: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """("probe.optimizer.lr", "0.1"), ... of a configuration."""
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from _flat(value, f"{name}.{key}" if name else str(key))
    else:
        yield name, "null" if tree is None else str(tree)
