"""Costs: what a pass counts, how a line reads, and what attacks really take."""

from collections.abc import Callable

import pytest
import torch
from passes_counted import counted
from text_encoder import TextEncoder
from tiny_attacks import short
from tiny_models import images, tiny
from torch.func import functional_call, jvp
from torch.utils.flop_counter import FlopCounterMode

from roli_fast import PGD
from roli_fast.analysis import Cost, LinearHead, attack_cost
from roli_fast.analysis.costs import FORWARD, INPUT_BACKWARD, JVP, WEIGHT_BACKWARD, count_of
from roli_fast.attacks import ATTACKS
from roli_fast.data import Batch


@pytest.mark.parametrize(
    ("cost", "line"),
    [
        (Cost("feature drift", 2000, bytes=3_071_000), "feature drift: 2,000 forwards, 3.1 MB"),
        (Cost("a", 1, 1, 1, 1), "a: 1 forward, 1 input gradient, 1 weight gradient, 1 JVP"),
        (Cost("b", jvps=2, flops=5.4e16), "b: 2 JVPs, 54 PFLOP"),
        (Cost("c", flops=8.7e19, bytes=999), "c: 8.7e+19 FLOP, 999 B"),
        (Cost("d", bytes=999_999), "d: 1.0 MB"),
        (Cost("e", bytes=1000), "e: 1.0 kB"),
        (Cost("f"), "f: nothing"),
    ],
)
def test_a_line_reads(cost: Cost, line: str) -> None:
    assert str(cost) == line


def test_costs_add_up() -> None:
    one = Cost("one", 10, 5, 3, 2, flops=7.0, bytes=100)
    two = Cost("two", 1, 1, 1, 1, flops=1.0, bytes=30)
    assert one + two == Cost("one, two", 11, 6, 4, 3, flops=8.0, bytes=100)
    assert (one + one).what == "one"
    assert sum([one, two], Cost("all")).named("all") == (one + two).named("all")
    assert one.forward_units == 10 + 5 + 2 * 3 + 2 * 2
    assert one.seconds(0.5) == 25 / 2 and one.seconds(0.5, 14.0) == 25 / 2 + 0.5


def test_a_gradient_and_a_jvp_are_six_forwards() -> None:
    assert Cost("FT ratio", forwards=2, weight_backwards=1, jvps=1).forward_units == 6


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # inside torch, once
def test_the_units_are_those_of_counted_arithmetic() -> None:
    """Matrix products of a transformer; the first layer's input needs no gradient, hence 10 %."""
    model = TextEncoder(width=32).eval()
    view, x = LinearHead.of(model, "out"), torch.zeros(2, 6, dtype=torch.int64)
    weights = {name: p.detach() for name, p in view.backbone().items()}

    def flops(work: Callable[[], object]) -> int:
        with FlopCounterMode(display=False) as counter:
            work()
        return counter.get_total_flops()

    forward = flops(lambda: view.features(x))

    def run(weights: dict[str, torch.Tensor]) -> torch.Tensor:
        return functional_call(model, weights, (x,))

    gradient = flops(lambda: model(x).sum().backward())
    product = flops(lambda: jvp(run, (weights,), (weights,)))
    assert gradient / forward - FORWARD == pytest.approx(WEIGHT_BACKWARD, rel=0.1)
    assert product / forward - FORWARD == pytest.approx(JVP, rel=0.1)
    network, pixels = tiny(), images(2, 3, 8, 8).requires_grad_()
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    forward = flops(lambda: network(pixels.detach()))
    gradient = flops(lambda: network(pixels).sum().backward())
    assert gradient / forward - FORWARD == pytest.approx(INPUT_BACKWARD, rel=0.1)


@pytest.mark.parametrize("name", list(ATTACKS))
def test_no_attack_costs_more_than_it_says(name: str) -> None:
    attack, model = short(ATTACKS[name], "linf"), tiny(num_classes=10).eval()
    x = images(6, 3, 8, 8)
    y = model(x).argmax(1)
    said = attack_cost(attack, 6)
    with counted(model) as count:
        attack(model, x, y, torch.Generator().manual_seed(0))
    spare = 1.05 if name in ("fab-t", "autoattack") else 1
    assert 0 < count.forwards <= spare * said.forwards
    assert count.input_backwards <= spare * said.input_backwards
    assert count.forwards >= 0.7 * said.forwards  # on a model that mostly resists
    assert count.weight_backwards == 0


@pytest.mark.parametrize(
    ("attack", "forwards", "backwards"),
    [
        (PGD(steps=7), 7, 7),
        (PGD(steps=7, keep="best"), 8, 7),
        (PGD(steps=7, keep="adversarial"), 8, 7),
        (PGD(steps=4, restarts=3), 3 * (4 + 1), 12),
        (PGD(steps=4, eot=2), 8, 8),
        (PGD(steps=4, loss="kl"), 5, 4),
        (PGD(steps=4, bounds=(-1.0, 1.0)), 4, 4),
    ],
)
def test_the_passes_of_pgd(attack: PGD, forwards: int, backwards: int) -> None:
    said = attack_cost(attack, 3, classes=5)
    assert (said.what, said.forwards) == (attack.label, 3 * forwards)
    assert said.input_backwards == 3 * backwards


def test_targets_are_of_the_models_classes() -> None:
    few, many = (attack_cost(short(ATTACKS["apgd-t"], "linf"), 1, classes=c) for c in (4, 10))
    assert few.forwards < many.forwards


def test_the_global_draws_are_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    state = torch.get_rng_state()
    attack_cost(short(ATTACKS["autoattack"], "l2"), 2)
    assert torch.equal(torch.get_rng_state(), state)
    assert not caplog.records  # the toy model gives no warnings of its own


def test_the_number_of_samples_is_known_of_a_list_alone() -> None:
    batch = Batch(images(3, 1), torch.zeros(3), torch.zeros(3))
    assert count_of([batch, batch]) == count_of((batch, batch)) == 6
    assert count_of(iter([batch])) is None and count_of([]) == 0
