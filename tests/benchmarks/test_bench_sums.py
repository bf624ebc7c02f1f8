"""What the groups of ops and AutoAttack conclude from times made by hand."""

from groups import autoattack, ops
from harness.timing import Times


def test_an_ops_row_is_in_microseconds_and_multiples_of_native() -> None:
    times = Times({"native": [1e-6, 2e-6, 1e-6], "eager": [4e-6, 6e-6, 5e-6]})
    found = ops.summary(times, {"eager": 4.0})
    assert found["median_us"] == {"native": 1.0, "eager": 5.0}
    assert found["times_native"] == {"native": 1.0, "eager": 4.0}
    assert found["met"]
    assert not ops.summary(times, {"eager": 4.01})["met"]


def test_autoattack_adds_up_parts_and_counts_flags_that_differ() -> None:
    result = {
        "seconds": {"roli_fast": [[1.0, 2.0], [3.0, 4.0]], "usual": [[2.0, 4.0], [6.0, 8.0]]},
        "robust": {"roli_fast": [True, False, True, False], "usual": [True, True, True, False]},
    }
    found = autoattack.conclude(result, images=4)
    assert found["roli_fast"]["seconds"] == 10.0 and found["roli_fast"]["by_part"] == [4.0, 6.0]
    assert found["usual"]["times_ours"] == 2.0 and found["usual"]["flags_unlike_ours"] == 1
    assert (
        found["roli_fast"]["robust_accuracy"] == 0.5 and found["usual"]["robust_accuracy"] == 0.75
    )


def test_every_op_of_the_package_has_a_case() -> None:
    assert set(ops.ROUNDS) == set(ops.CASES) and "linf_step_" in ops.CASES
    named = {name.split()[0] for name in ops.TARGETS}
    assert named <= set(ops.CASES)
