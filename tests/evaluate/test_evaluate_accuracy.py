"""Clean and robust accuracy of a model and attacks whose every answer is known."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from tiny_models import Counting, Mixed, images, untouched
from torch import Tensor, nn

from roli_fast.attacks import APGD, PGD, Attack, AttackResult
from roli_fast.attacks.base import AttackInputs
from roli_fast.data import Batch
from roli_fast.engine import Cost, Engine
from roli_fast.errors import ArgumentError, ArgumentTypeError
from roli_fast.evaluate import Evaluation, evaluate, robustness_curve, standard_error


class Reads(nn.Module):
    """The class of an image is its first pixel, times ten: 0.3 -> 3."""

    def forward(self, x: Tensor) -> Tensor:
        return -(x[:, :1] * 10 - torch.arange(10)).abs()


@dataclass(frozen=True)
class Flips(Attack):
    """Changes the class of the samples whose second pixel is listed; notes what it is given."""

    flipped: tuple[float, ...] = ()
    name: str = "flips"
    seen: list[Tensor] = field(default_factory=list, compare=False)

    @property
    def label(self) -> str:
        return self.name

    def search(self, inputs: AttackInputs) -> AttackResult:
        x = inputs.x
        self.seen.append(x.clone())
        x_adv = x.clone()
        for value in self.flipped:
            x_adv[:, 0] = torch.where(x[:, 1] == value, (x[:, 0] + 0.5) % 1, x_adv[:, 0])
        return AttackResult(x_adv, Cost(0, 0))


X = torch.tensor([[0.1, 0.0], [0.2, 0.125], [0.3, 0.25], [0.4, 0.375], [0.0, 0.5], [0.1, 0.625]])
Y = torch.tensor([1, 2, 9, 4, 0, 7])  # samples 2 and 5 are wrong to begin with


def batches(*sizes: int, x: Tensor = X, y: Tensor = Y) -> Iterator[Batch]:
    ids = torch.arange(len(y))
    yield from map(Batch, x.split(sizes), y.split(sizes), ids.split(sizes))


@pytest.mark.parametrize("sizes", [(6,), (4, 2), (1, 1, 1, 1, 1, 1), (3, 0, 3)])
def test_flags_by_hand_in_the_order_of_the_data(sizes: tuple[int, ...]) -> None:
    """The attack flips 0.125 (right), 0.25 (wrong anyway) and 0.5 (right)."""
    attacks = [Flips((0.125, 0.25, 0.5)), Flips(name="none")]
    result = evaluate(Reads(), batches(*sizes), attacks)
    assert result.clean.tolist() == [True, True, False, True, True, False]
    assert result.robust["flips"].tolist() == [True, False, False, True, False, False]
    assert result.robust["none"].tolist() == result.clean.tolist()
    assert result.clean_accuracy == pytest.approx(4 / 6)
    assert result.robust_accuracy == {
        "flips": pytest.approx(2 / 6),
        "none": pytest.approx(4 / 6),
    }


def test_only_images_that_are_right_are_attacked() -> None:
    attack = Flips()
    evaluate(Reads(), batches(2, 4), [attack])
    assert torch.equal(torch.cat(attack.seen), X[[0, 1, 3, 4]])


def test_a_batch_without_a_right_image_costs_one_forward() -> None:
    attack, model = Flips(), Counting(Reads())
    result = evaluate(model, batches(6, y=(Y + 5) % 10), [attack])
    assert not result.robust["flips"].any() and not attack.seen and model.forwards == 1


def test_a_wrong_image_never_becomes_robust() -> None:
    """Moving 0.3 to 0.8 makes sample 2 right for label 8: it was wrong when clean."""
    y = torch.tensor([1, 2, 8, 4, 0, 7])
    result = evaluate(Reads(), batches(6, y=y), [Flips((0.25,))])
    assert not result.robust["flips"][2]
    assert not (result.robust["flips"] & ~result.clean).any()


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


def test_without_attacks() -> None:
    result = evaluate(Reads(), batches(4, 2), [])
    assert result.clean_accuracy == pytest.approx(4 / 6) and result.robust == {}


def test_progress_counts_images() -> None:
    done: list[int] = []
    evaluate(Reads(), batches(4, 2), [], after_batch=done.append)
    assert done == [4, 2]


class TestModelIsGivenBack:
    x, y = images(4, 3, 6, 6), torch.tensor([0, 3, 1, 2])

    def test_after_success(self) -> None:
        model = Mixed()
        with untouched(model):
            evaluate(model, batches(2, 2, x=self.x, y=self.y), [PGD(steps=2)])

    def test_it_is_evaluated_in_eval_mode(self) -> None:
        trained, frozen = Mixed(), Mixed().eval()
        with torch.no_grad():
            y = frozen(self.x).argmax(1)
        assert evaluate(trained, batches(4, x=self.x, y=y), []).clean_accuracy == 1

    @pytest.mark.parametrize("where", ["attack", "batches", "after_batch", "labels"])
    def test_after_an_exception(self, where: str) -> None:
        @dataclass(frozen=True)
        class Broken(Flips):
            def search(self, inputs: AttackInputs) -> AttackResult:
                raise KeyError("boom")

        def broken_batches() -> Iterator[Batch]:
            yield from batches(4, x=self.x, y=self.y)
            raise KeyError("boom")

        def stop(_count: int) -> None:
            raise KeyError("boom")

        model = Mixed()
        with torch.no_grad():
            y = Mixed().eval()(self.x).argmax(1)
        data = broken_batches() if where == "batches" else batches(4, x=self.x, y=y)
        if where == "labels":
            data = batches(4, x=self.x, y=y + 9)
        attacks = [Broken()] if where == "attack" else []
        with untouched(model), pytest.raises((KeyError, ArgumentError)):
            evaluate(model, data, attacks, after_batch=stop if where == "after_batch" else None)


class TestSeed:
    def survivors(self, seed: int) -> Tensor:
        x = images(40, 3, 6, 6)
        with torch.no_grad():
            y = Mixed().eval()(x).argmax(1)
        attack = PGD(eps=0.9, step_size=0.001, steps=1)
        return evaluate(Mixed(), batches(25, 15, x=x, y=y), [attack], seed=seed).robust["pgd-1"]

    def test_the_seed_decides_and_the_global_state_stays(self) -> None:
        before = torch.get_rng_state()
        first = self.survivors(0)
        assert 0 < first.sum() < 40 and not torch.equal(first, self.survivors(1))
        assert torch.equal(torch.get_rng_state(), before)
        with torch.random.fork_rng():
            torch.manual_seed(99)
            assert torch.equal(self.survivors(0), first)

    def test_a_start_depends_on_seed_attack_and_sample_alone(self) -> None:
        """Every batch of one attack gets a fresh generator of one seed, and its samples' ids."""
        calls: list[tuple[str, int, list[int]]] = []

        @dataclass(frozen=True)
        class Notes(Flips):
            def search(self, inputs: AttackInputs) -> AttackResult:
                assert inputs.generator is not None
                calls.append((self.name, inputs.generator.initial_seed(), inputs.ids.tolist()))
                return AttackResult(inputs.x, Cost(0, 0))

        for seed in (0, 1):
            evaluate(Reads(), batches(4, 2), [Notes(), Notes(name="other")], seed=seed)
        assert [ids for _, _, ids in calls] == [[0, 1, 3], [0, 1, 3], [4], [4]] * 2
        seeds = {(name, number) for name, number, _ in calls}
        assert len(seeds) == len({number for _, number in seeds}) == 4

    def test_the_size_of_batches_changes_no_flag(self) -> None:
        x = images(40, 3, 6, 6)
        with torch.no_grad():
            y = Mixed().eval()(x).argmax(1)
        y[::7] = (y[::7] + 1) % 3  # wrong to begin with: who is attacked beside whom differs
        attack = PGD(eps=0.9, step_size=0.001, steps=1)
        flags = [
            evaluate(Mixed(), batches(*sizes, x=x, y=y), [attack]).robust["pgd-1"]
            for sizes in ((40,), (25, 15), (1,) * 40)
        ]
        assert 0 < flags[0].sum() < 40
        assert torch.equal(flags[0], flags[1]) and torch.equal(flags[0], flags[2])


class TestErrors:
    @pytest.mark.parametrize("data", [[], [Batch(X[:0], Y[:0], Y[:0])]])
    def test_no_images(self, data: list[Batch]) -> None:
        with pytest.raises(ArgumentError, match="`batches`: expected at least one image, got none"):
            evaluate(Reads(), data, [Flips()])

    def test_two_attacks_of_one_label(self) -> None:
        """They would share a column: its flags would be twice as many as the images."""
        attacks = [PGD(eps=4 / 255), PGD(eps=8 / 255), PGD(steps=3)]
        with pytest.raises(ArgumentError, match="`attacks`: .*pgd-10 more than once.*separate"):
            evaluate(Reads(), batches(6), attacks)

    def test_labels_out_of_range(self) -> None:
        with pytest.raises(ArgumentError, match=r"`y`: expected labels in \[0, 10\)"):
            evaluate(Reads(), batches(6, y=Y + 1), [])

    def test_labels_of_another_type(self) -> None:
        with pytest.raises(ArgumentTypeError, match=r"`y`.*y\.long\(\)"):
            evaluate(Reads(), batches(6, y=Y.int()), [])

    def test_a_model_that_returns_a_tuple(self) -> None:
        class Pair(Reads):
            def forward(self, x: Tensor) -> Any:
                return super().forward(x), x

        with pytest.raises(ArgumentTypeError, match="`model`.*got tuple"):
            evaluate(Pair(), batches(6), [])


class TestStandardError:
    def test_by_hand(self) -> None:
        """sqrt(0.5 * 0.5 / 100) = 0.05; 0.2 over 64: sqrt(0.16 / 64) = 0.05."""
        assert standard_error(0.5, 100) == pytest.approx(0.05)
        assert standard_error(0.2, 64) == pytest.approx(0.05)
        assert standard_error(0.0, 10) == standard_error(1.0, 10) == 0.0

    def test_it_is_the_spread_of_repeated_draws(self) -> None:
        draws = torch.rand(4000, 50, generator=torch.Generator().manual_seed(0)) < 0.3
        spread = draws.double().mean(1).std().item()
        assert spread == pytest.approx(standard_error(0.3, 50), rel=0.05)

    @pytest.mark.parametrize(
        ("accuracy", "count"), [(0.5, 0), (25.5, 100), (-0.1, 9), (math.nan, 9)]
    )
    def test_what_has_none(self, accuracy: float, count: int) -> None:
        with pytest.raises(ArgumentError, match="`accuracy`|`count`"):
            standard_error(accuracy, count)


def test_accuracies_are_means_of_flags() -> None:
    clean = torch.tensor([True, False, True, True])
    result = Evaluation(clean, {"a": torch.tensor([True, False, False, False])})
    assert result.clean_accuracy == 0.75 and result.robust_accuracy == {"a": 0.25}
