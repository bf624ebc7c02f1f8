"""Clean and robust accuracy of a model and attacks whose every answer is known."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from tiny_models import Counting, Mixed, images, untouched
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from roli_fast.attacks import APGD, PGD, Attack, AttackResult, AutoAttack, MultiAPGD, Union
from roli_fast.attacks.base import AttackInputs
from roli_fast.data import Batch
from roli_fast.engine import Cost, Engine
from roli_fast.errors import ArgumentError, ArgumentTypeError
from roli_fast.evaluate import columns, evaluate, robustness_curve
from roli_fast.threat import ThreatModel


class Reads(nn.Module):
    """The class of an image is its first pixel, times ten: 0.3 -> 3."""

    def forward(self, x: Tensor) -> Tensor:
        return -(x[:, :1] * 10 - torch.arange(10)).abs()


@dataclass(frozen=True)
class Flips(Attack):
    """Changes the class of the samples whose second pixel is listed; notes what it is given."""

    flipped: tuple[float, ...] = ()
    name: str = "flips"
    seen: list[AttackInputs] = field(default_factory=list, compare=False)

    @property
    def label(self) -> str:
        return self.name

    def search(self, inputs: AttackInputs) -> AttackResult:
        x = inputs.x
        self.seen.append(inputs)
        x_adv = x.clone()
        for value in self.flipped:
            x_adv[:, 0] = torch.where(x[:, 1] == value, (x[:, 0] + 0.5) % 1, x_adv[:, 0])
        return AttackResult(x_adv, Cost(0, 0))


X = torch.tensor([[0.1, 0.0], [0.2, 0.125], [0.3, 0.25], [0.4, 0.375], [0.0, 0.5], [0.1, 0.625]])
Y = torch.tensor([1, 2, 9, 4, 0, 7])  # samples 2 and 5 are wrong to begin with


def batches(*sizes: int, x: Tensor = X, y: Tensor = Y) -> Iterator[Batch]:
    ids = torch.arange(len(y))
    yield from map(Batch, x.split(sizes), y.split(sizes), ids.split(sizes))


@pytest.mark.parametrize("sizes", [(6,), (4, 2), (3, 0, 3)])
def test_flags_by_hand_in_the_order_of_the_data(sizes: tuple[int, ...]) -> None:
    """The attack flips 0.125 (right), 0.25 (wrong anyway) and 0.5 (right)."""
    attacks, done = [Flips((0.125, 0.25, 0.5)), Flips(name="none")], []
    result = evaluate(Reads(), batches(*sizes), attacks, after_batch=done.append)
    assert result.clean.tolist() == [True, True, False, True, True, False]
    assert result.robust["flips"].tolist() == [True, False, False, True, False, False]
    assert result.robust["none"].tolist() == result.clean.tolist()
    assert result.clean_accuracy == pytest.approx(4 / 6)
    shares = {"flips": pytest.approx(2 / 6), "none": pytest.approx(4 / 6)}
    assert result.robust_accuracy == shares and result.union_accuracy == pytest.approx(2 / 6)
    assert done == list(sizes)
    norms = {"linf": Flips((0.125, 0.25)), "l2": Flips((0.5,)), "l1": Flips()}
    union = evaluate(Reads(), batches(*sizes), norms).union
    assert union.tolist() == [True, False, False, True, False, False]
    seen = torch.cat([inputs.x for inputs in attacks[1].seen])
    assert torch.equal(seen, X[[0, 1, 3, 4]])  # only images that are right are attacked


def test_a_wrong_image_never_becomes_robust_and_costs_no_attack() -> None:
    """Moving 0.3 to 0.8 makes sample 2 right for label 8: it was wrong when clean."""
    result = evaluate(Reads(), batches(6, y=torch.tensor([1, 2, 8, 4, 0, 7])), [Flips((0.25,))])
    assert not (result.robust["flips"] & ~result.clean).any()
    attack, model = Flips(), Counting(Reads())
    result = evaluate(model, batches(6, y=(Y + 5) % 10), [attack])
    assert not result.robust["flips"].any() and not attack.seen and model.forwards == 1
    assert torch.equal(result.union, result.clean)


def test_a_model_that_breaks_down_is_not_robust() -> None:
    """argmax takes NaN for the maximum: class 0 would be right for free."""

    class Breaks(Reads):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * (1 if (x[:, 0] < 0.45).all() else float("nan"))

    result = evaluate(Breaks(), batches(6), [Flips((0.5,))])
    assert result.clean[4] and not result.robust["flips"][4]
    broken = evaluate(Breaks(), batches(6, x=X + 0.5, y=torch.zeros_like(Y)), [])
    assert broken.clean_accuracy == 0


class NearSighted(nn.Module):
    """Class 0 below 1/2; under autocast it takes every image for class 1."""

    def forward(self, x: Tensor) -> Tensor:
        logits = torch.cat([0.5 - x, x - 0.5], 1)
        return logits + torch.tensor([-9.0, 9.0]) if torch.is_autocast_enabled("cpu") else logits


def test_what_is_wrong_in_low_precision_alone_is_attacked_all_the_same() -> None:
    """Radius 1/8: 0.4 falls and 0.2 does not; in bf16 both look wrong, and are left as they are."""
    attack = APGD(norm="linf", eps=0.125, bounds=(0.0, 1.0), steps=3)
    x, y = torch.tensor([[0.4], [0.2]]), torch.tensor([0, 0])
    for engine in (Engine(), Engine(dtype=torch.bfloat16)):
        found = evaluate(NearSighted(), batches(2, x=x, y=y), [attack], engine=engine)
        assert found.clean.all() and found.robust[attack.label].tolist() == [False, True]
        model = engine.bind(NearSighted())
        curve = robustness_curve(model, batches(2, x=x, y=y), attack, [0.125])
        assert torch.equal(curve.right[1], found.robust[attack.label])


MANY = images(40, 3, 6, 6)


def answers(x: Tensor) -> Tensor:
    with torch.no_grad():
        return Mixed().eval()(x).argmax(1)


@pytest.mark.parametrize("where", ["", "attack", "batches", "after_batch", "labels"])
def test_the_model_is_given_back(where: str) -> None:
    """As it was, after an exception too; in between it is in eval mode."""

    def boom(*_: Any) -> Any:
        raise KeyError("boom")

    class Broken(Flips):
        search = boom

    def broken_batches() -> Iterator[Batch]:
        yield from batches(4, x=x, y=y)
        boom()

    model, x, y = Mixed(), MANY[:4], answers(MANY[:4])
    data = (
        broken_batches() if where == "batches" else batches(4, x=x, y=y + 9 * (where == "labels"))
    )
    attacks = [Broken() if where == "attack" else PGD(steps=2)]
    after_batch = boom if where == "after_batch" else None
    with untouched(model):
        if not where:
            assert evaluate(model, data, attacks).clean_accuracy == 1
            return
        with pytest.raises((KeyError, ArgumentError)):
            evaluate(model, data, attacks, after_batch=after_batch)


def test_the_seed_decides_and_neither_batches_nor_the_global_state_do() -> None:
    y, state = answers(MANY), torch.get_rng_state()
    y[::7] = (y[::7] + 1) % 3  # wrong to begin with: who is attacked beside whom differs
    attack = PGD(eps=0.9, step_size=0.001, steps=1)

    def robust(*sizes: int, seed: int = 0) -> Tensor:
        return evaluate(Mixed(), batches(*sizes, x=MANY, y=y), [attack], seed=seed).robust["pgd-1"]

    first = robust(40)
    assert 0 < first.sum() < 40 and not torch.equal(first, robust(40, seed=1))
    assert torch.equal(torch.get_rng_state(), state)
    with torch.random.fork_rng():
        torch.manual_seed(99)
        assert torch.equal(robust(25, 15), first)


def test_a_loader_of_torch_gives_the_same_flags() -> None:
    """Draws go by the sample's place, whatever the batches."""
    x = images(12, 3, 6, 6)
    y = Mixed().eval()(x).argmax(1)
    attack, whole = PGD(eps=0.1, steps=2), [Batch(x, y, torch.arange(12))]
    expected = evaluate(Mixed(), whole, [attack], seed=3)
    for size in (5, 12):
        found = evaluate(Mixed(), DataLoader(TensorDataset(x, y), size), [attack], seed=3)
        assert torch.equal(found.union, expected.union) and 0 < found.union.sum() < 12
    with pytest.raises(ArgumentError, match=r"`batches`: expected \(x, y\).*got dict"):
        evaluate(Mixed(), [{"x": x, "y": y}], [attack])  # pyright: ignore


def test_bad_input_is_named() -> None:
    class Pair(Reads):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x), x

    for data in ([], [Batch(X[:0], Y[:0], Y[:0])]):
        with pytest.raises(ArgumentError, match="`batches`: expected at least one image, got none"):
            evaluate(Reads(), data, [Flips()])
    attacks = [PGD(eps=4 / 255), PGD(eps=8 / 255), PGD(steps=3)]  # two would share a column
    with pytest.raises(ArgumentError, match="`attacks`: .*pgd-10, pgd-10.*separate"):
        evaluate(Reads(), batches(6), attacks)
    with pytest.raises(ArgumentError, match=r"`y`: expected labels in \[0, 10\)"):
        evaluate(Reads(), batches(6, y=Y + 1), [])
    with pytest.raises(ArgumentTypeError, match=r"`y`.*y\.long\(\)"):
        evaluate(Reads(), batches(6, y=Y.int()), [])
    with pytest.raises(ArgumentTypeError, match="`model`.*got tuple"):
        evaluate(Pair(), batches(6), [])


THREE = ThreatModel("linf", 0.1, other_norms=("l2", "l1"), other_eps=(0.5, 12.0))
OPEN: Any = dict(norm=None, eps=None, step_size=None, bounds=None)


def test_several_norms_are_the_attack_in_each() -> None:
    attack, several = PGD(**OPEN, steps=3), MultiAPGD(norms=None, eps=None, steps=3)
    assert columns(attack, ThreatModel("l2", 0.5)) == {"pgd-3": PGD("l2", 0.5, None, 3)}
    alone = (("linf", 0.1), ("l2", 0.5), ("l1", 12.0))
    assert columns(attack, THREE) == {n: PGD(n, eps, None, 3) for n, eps in alone}
    each = {n: MultiAPGD(norms=(n,), eps=(eps,), steps=3) for n, eps in alone}
    assert columns(several, THREE) == each


def test_norms_of_its_own_make_one_column() -> None:
    """A radius that is left out is the threat's for that norm."""
    own: dict[str, Any] = columns(AutoAttack(norm="l1", eps=None, version="apgd"), THREE)
    assert list(own) == ["autoattack-apgd"] and own["autoattack-apgd"].eps == 12.0
    two: Any = next(iter(columns(MultiAPGD(norms=("linf", "l1"), eps=None), THREE).values()))
    assert (two.norms, two.eps) == (("linf", "l1"), (0.1, 12.0))
    union = Union.over([("linf", 0.1), ("l2", 0.5)], attack=PGD(**OPEN))
    assert columns(union, THREE) == {union.label: union}


@pytest.mark.parametrize(
    ("attack", "words"),
    [
        (PGD(norm=None, eps=0.1), r"`eps`: expected null .* \(linf, l2, l1\), got 0.1"),
        (PGD(norm=None, eps=None, step_size=0.01), "`step_size`: expected null"),
        (MultiAPGD(norms=None, eps=(0.1, 0.5, 12.0)), "`eps`: expected null"),
    ],
)
def test_one_radius_for_all_norms_is_a_slip(attack: Attack, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        columns(attack, THREE)


def test_a_column_has_the_draws_of_the_attack_by_itself() -> None:
    """So a norm's accuracy does not depend on which norms stand beside it."""
    attack = PGD("linf", 0.05, None, 1)
    together = evaluate(Reads(), batches(6), {"linf": attack, "again": attack}, seed=3)
    alone = evaluate(Reads(), batches(6), [attack], seed=3)
    assert torch.equal(together.robust["linf"], alone.robust["pgd-1"])
    assert torch.equal(together.robust["linf"], together.robust["again"])
