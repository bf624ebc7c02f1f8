"""The groups of benchmarks; each module has `CASES`, name -> what adds the case to a report."""

import importlib
from collections.abc import Callable, Mapping

from harness.report import Report

GROUPS = ("pgd", "train", "objectives", "lora", "switches", "growth", "ops", "autoattack", "gpu")
"""Those that time interleaved candidates; memory and endtoend start processes of their own."""


def cases_of(group: str) -> Mapping[str, Callable[[Report], object]]:
    """The cases of a group."""
    return importlib.import_module(f"groups.{group}").CASES
