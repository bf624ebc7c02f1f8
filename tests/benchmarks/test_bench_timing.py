"""The interleaved timer, against times made by hand."""

import pytest

from harness.timing import Plan, Times, measure


def test_a_ratio_is_the_median_of_the_ratios_within_a_round() -> None:
    # a slow second round hits both: the medians' ratio is 3, and the rounds say 2, 2, 4
    times = Times({"ours": [1.0, 10.0, 1.0], "theirs": [2.0, 20.0, 4.0]})
    assert times.ratio("theirs", "ours") == 2.0
    assert times.ratio("ours", "theirs") == 0.5
    assert times.median("theirs") == 4.0
    assert times.ratio("theirs", "absent") is None
    assert times.ratio("absent", "ours") is None
    assert times.median("absent") is None


def test_quartiles() -> None:
    times = Times({"five": [5.0, 1.0, 3.0, 2.0, 4.0], "one": [7.0]})
    assert times.quartiles("five") == [2.0, 4.0]
    assert times.quartiles("one") == [7.0, 7.0]


def test_rounds_call_each_candidate_to_and_fro_as_often_as_it_is_repeated() -> None:
    order: list[str] = []
    calls = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    times = measure(calls, Plan(3, 3), "cpu", {"b": 2})
    assert order == ["a", "b", "b"] + ["b", "b", "a"] + ["a", "b", "b"]
    assert [len(values) for values in times.seconds.values()] == [3, 3]


@pytest.mark.parametrize(("plan", "rounds"), [(Plan(2, 5, 0.0), 2), (Plan(2, 5, 60.0), 5)])
def test_the_budget_ends_the_rounds_but_not_before_the_least(plan: Plan, rounds: int) -> None:
    calls = []
    measure({"a": lambda: calls.append(0)}, plan, "cpu")
    assert len(calls) == rounds
