"""The table of the accuracy guard, from hand-made numbers."""

import pytest

import guard


def test_differences_are_paired_by_seed() -> None:
    """Seeds differ by 10 points, the variants by 1, 2 and 3 within each seed: 2 +- 1 / sqrt 3."""
    assert guard.difference([0.11, 0.22, 0.33], [0.10, 0.20, 0.30]) == "+2.0 ± 0.6"
    assert guard.difference([0.11], [0.10]) == "+1.0"


def test_the_table_names_every_variant_beside_fp32() -> None:
    rows = {
        "fp32": {"clean": [0.5, 0.6], "robust": [0.3, 0.4]},
        "bf16": {"clean": [0.5, 0.5], "robust": [0.31, 0.39]},
    }
    lines = guard.table(rows).splitlines()[2:]
    assert lines == [
        "| fp32 | 55.0 ± 7.1 | 35.0 ± 7.1 |  |",
        "| bf16 | 50.0 ± 0.0 | 35.0 ± 5.7 | +0.0 ± 1.0 |",
    ]


@pytest.mark.parametrize("variant", guard.VARIANTS)
def test_variants_differ_from_fp32_in_switches_that_it_has_off(variant: str) -> None:
    changed = {k for k, v in guard.VARIANTS[variant].items() if guard.PLAIN.get(k) != v}
    assert changed <= {"merge", "fold", "attention", "channels_last", "dtype"}
    assert len(changed) == (0 if variant in ("fp32", "default") else 1)
