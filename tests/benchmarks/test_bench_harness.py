"""What all benchmarks share, against numbers by hand: rounds, ratios, counts, targets, a loop."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from groups import autoattack, ops
from harness import plain, work
from harness.networks import SmallCNN
from harness.report import Options, Report, cases_of, table, times_of, verdict
from harness.timing import Plan, Times, measure

# a slow second round hits both: the medians' ratio is 4, and the rounds say 2, 2, 4
TIMES = Times({"ours": [1.0, 10.0, 1.0], "theirs": [2.0, 20.0, 4.0]})
COLUMNS = {"theirs": {"forwards": 3, "backwards": 2}, "art": {"note": "not installed"}}


def test_a_ratio_is_the_median_of_the_ratios_within_a_round() -> None:
    assert (TIMES.ratio("theirs", "ours"), TIMES.ratio("ours", "theirs")) == (2.0, 0.5)
    assert TIMES.median("theirs") == 4.0 and TIMES.median("absent") is None
    assert TIMES.ratio("theirs", "absent") is None
    assert Times({"five": [5.0, 1.0, 3.0, 2.0, 4.0]}).quartiles("five") == [2.0, 4.0]
    assert Times({"one": [7.0]}).quartiles("one") == [7.0, 7.0]


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


def test_verdicts() -> None:
    found = [verdict("x", value, at_least=2.5)["met"] for value in (2.5, 2.49, None)]
    assert found == [True, False, None]
    assert [verdict("x", value, at_most=0.0)["met"] for value in (0.0, 0.01)] == [True, False]


def test_a_result_file_says_where_how_and_what_and_the_table_ends_with_targets(
    tmp_path: Path,
) -> None:
    report = Report("pgd", Options(threads=1), tmp_path / "pgd-cpu.json")
    report.add("case", TIMES, "ours", COLUMNS)
    report.target("speed", 1.0, at_least=1.35)
    report.target("share", None, at_most=0.5)
    saved = json.loads((tmp_path / "pgd-cpu.json").read_text())
    machine = saved["machine"]
    assert {"cpu", "cpus", "threads", "load_before", "torch", "backend", "build"} <= set(machine)
    mine, other, missing = saved["rows"]
    assert mine["ms"] == 1000 and mine["times_base"] == 1.0
    assert other["times_base"] == 2.0 and other["base"] == "ours" and other["forwards"] == 3
    assert other["rounds_ms"] == [2000, 20000, 4000] and other["quartiles_ms"] == [3000, 12000]
    assert missing == {"case": "case", "name": "art", "note": "not installed"}
    assert cases_of(saved) == ["case"] and times_of(saved, "case") == TIMES
    text = table([saved])
    *_, title, missed, unknown = text.splitlines()
    assert title == "targets" and "1 >= 1.35" in missed and missed.endswith("MISSED")
    assert unknown.endswith("not measured") and "not installed" in text
    quick = Report("pgd", Options(quick=True))
    quick.target("speed", 2.0, at_least=1.35)
    assert quick.targets[0]["met"] is None


def test_what_the_groups_conclude() -> None:
    times = Times({"native": [1e-6, 2e-6, 1e-6], "eager": [4e-6, 6e-6, 5e-6]})
    found = ops.summary(times, {"eager": 4.0})
    assert found["median_us"] == {"native": 1.0, "eager": 5.0}
    assert found["times_native"] == {"native": 1.0, "eager": 4.0} and found["met"]
    assert not ops.summary(times, {"eager": 4.01})["met"]
    result = {
        "seconds": {"roli_fast": [[1.0, 2.0], [3.0, 4.0]], "usual": [[2.0, 4.0], [6.0, 8.0]]},
        "robust": {"roli_fast": [True, False, True, False], "usual": [True, True, True, False]},
    }
    mine, usual = autoattack.conclude(result, images=4).values()
    assert mine["seconds"] == 10.0 and mine["by_part"] == [4.0, 6.0]
    assert usual["times_ours"] == 2.0 and usual["flags_unlike_ours"] == 1
    assert (mine["robust_accuracy"], usual["robust_accuracy"]) == (0.5, 0.75)


@pytest.fixture
def images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(4, 3, 32, 32, generator=generator), torch.arange(4)


def test_roli_s_attack_costs_one_forward_more_and_fills_the_weights_gradients(images) -> None:
    torch.manual_seed(0)
    model, counted = SmallCNN().train(), work.Passes()
    with counted.of(model):
        x_adv = plain.attack(model, *images, steps=3)
    assert (counted.forwards, counted.backwards) == (4, 3)
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    x, y = images
    assert model.training and (x_adv - x).abs().max() <= plain.EPS + 1e-6
    assert x_adv.min() >= 0 and x_adv.max() <= 1 and not x_adv.requires_grad
    loss = nn.functional.cross_entropy
    assert loss(model(x_adv), y) > loss(model(x), y)


def test_roli_s_attack_keeps_the_candidate_of_highest_mean_loss(images) -> None:
    class Seen(nn.Module):
        """Its loss falls from the third candidate on, whatever the images."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))
            self.inputs: list[Tensor] = []

        def forward(self, x: Tensor) -> Tensor:
            self.inputs.append(x.detach().clone())
            logits = torch.zeros(len(x), 5)
            logits[:, 4] = [0.0, 1.0, 5.0, 2.0][len(self.inputs) - 1]
            return logits + 0 * (x.mean() + self.weight)

    model = Seen()
    assert torch.equal(plain.attack(model, *images, steps=3), model.inputs[2])


def test_lora_begins_as_the_layer_it_replaces_and_both_factors_get_gradients() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    x = torch.rand(4, 6)
    before = model(x)
    plain.add_lora(model, ("0",), rank=2)
    assert torch.equal(model(x), before)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained == ["0.down.weight", "0.up.weight"]
    model(x).sum().backward()
    assert model.get_parameter("0.up.weight").grad.any()


def test_flops_and_activations_of_a_network_by_hand() -> None:
    """Two products a layer; of a graph each storage counts once, and no weight."""
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    x, y = torch.rand(4, 6), torch.zeros(4, dtype=torch.int64)
    assert work.step_flops(model, x, y) == 2 * 2 * 4 * (6 * 5 + 5 * 3)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    with work.kept(model, x) as megabytes:
        model(x)  # the ReLU's output, for the second layer and the ReLU alike
        assert megabytes() == 4 * 5 * 4 / 1e6
    call, flops = work.gemm(torch.bfloat16, "cpu", quick=True)
    out = call()
    assert flops == 2 * 128**3 and isinstance(out, torch.Tensor) and out.shape == (128, 128)
