"""PGD's restarts, momentum, losses, targets, EOT and radii."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_models import Counting, FixedLogits, Mixed, images, untouched
from torch import Tensor, nn
from wavy import Wavy, pictures, predicted

from roli_fast.attacks import PGD
from roli_fast.engine import Cost
from roli_fast.errors import ArgumentError, ArgumentTypeError
from roli_fast.losses import cross_entropy, kl

X = images(8, 3, 6, 6)
PLAIN: dict[str, Any] = dict(eps=1 / 8, step_size=1 / 32, steps=4)


def right(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model.eval()(X).argmax(1)


Y = right(Mixed())


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def logits_of(x: Tensor) -> Tensor:
    with torch.no_grad():
        return Mixed().eval()(x)


class TestMomentum:
    def test_by_hand(self) -> None:
        """Gradients (4, -4), then (1, 9): unit sums (.5, -.5) and (.1, .9). With decay 1 the second
        velocity is (.6, .4), with decay 2 it is (1.1, -.1): the signs differ."""

        class Turning(nn.Module):
            calls = 0

            def forward(self, x: Tensor) -> Tensor:
                self.calls += 1
                weight = torch.tensor([[4.0, -4.0], [1.0, 9.0]][self.calls - 1])
                return torch.stack([-(x * weight).sum(1), torch.zeros(len(x))], dim=1)

        def after(momentum: float) -> list[float]:
            attack = PGD(
                eps=0.25,
                step_size=0.0625,
                steps=2,
                random_start=False,
                momentum=momentum,
                loss="margin",
            )
            return attack(Turning(), torch.full((1, 2), 0.5), torch.tensor([0]))[0].tolist()

        assert after(0.0) == after(1.0) == [0.625, 0.5]
        assert after(2.0) == [0.625, 0.375]

    def test_a_zero_gradient_stays(self) -> None:
        model = FixedLogits(torch.zeros(2, 3))
        x = torch.full((1, 3), 0.5)
        attack = PGD(eps=0.1, random_start=False, momentum=1.0)
        assert torch.equal(attack(model, x, torch.tensor([0])), x)


class TestRestarts:
    def test_restarts_raise_the_loss_and_their_passes_are_known(self) -> None:
        model = Counting(Mixed())
        result = PGD(**PLAIN, restarts=3).run(model, X, Y, source())
        assert result.cost == Cost(model.forwards, model.backwards)
        assert model.forwards <= 3 * 5 and model.backwards <= 3 * 4
        assert result.fooled is not None
        assert torch.equal(result.fooled, logits_of(result.x_adv).argmax(1) != Y)

    def test_the_result_is_the_best_restart(self) -> None:
        """eps so small that nothing is fooled: the highest final loss of the three."""
        small: dict[str, Any] = dict(eps=1e-3, step_size=5e-4, steps=1)
        together = PGD(**small, restarts=3).run(Mixed(), X, Y, source())
        seeds = torch.randint(2**63 - 1, (3,), generator=source()).tolist()
        single = [PGD(**small)(Mixed(), X, Y, source(seed)) for seed in seeds]
        losses = torch.stack([cross_entropy(logits_of(x), Y) for x in single])
        assert together.fooled is not None and not together.fooled.any()
        for i, best in enumerate(losses.argmax(0).tolist()):
            assert torch.equal(together.x_adv[i], single[best][i])
        assert len(losses.argmax(0).unique()) > 1

    def test_fooled_samples_leave_the_restarts_to_come(self) -> None:
        result = PGD(eps=0.5, step_size=0.25, steps=5, restarts=4).run(Mixed(), X, Y, source())
        assert result.fooled is not None and result.fooled.all()
        assert result.cost == Cost(6, 5)

    def test_a_restart_that_fools_wins_over_one_of_higher_loss(self) -> None:
        """After the first search 100 classes are about as likely, the label by a hair (loss 4.6);
        after the second two are, and the other one is ahead (loss 0.74)."""

        class Staged(nn.Module):
            calls = 0

            def forward(self, x: Tensor) -> Tensor:
                self.calls += 1
                logits = torch.zeros(len(x), 100)
                logits[:, 0] = 0.01
                if self.calls == 4:
                    logits -= 50
                    logits[:, :2] = torch.tensor([0.0, 0.1])
                return logits + 0 * x.sum()

        x, y = torch.full((1, 3), 0.5), torch.tensor([0])
        result = PGD(eps=0.1, steps=1, restarts=2).run(Staged(), x, y, source())
        seeds = torch.randint(2**63 - 1, (2,), generator=source()).tolist()
        second = PGD(eps=0.1, steps=1)(Staged(), x, y, source(seeds[1]))
        assert result.fooled is not None and result.fooled.all()
        assert torch.equal(result.x_adv, second)

    def test_the_generator_moves_on_alike(self) -> None:
        states = []
        for eps in (1e-3, 0.5):
            generator = source()
            PGD(eps=eps, step_size=eps, steps=2, restarts=3)(Mixed(), X, Y, generator)
            states.append(generator.get_state())
        assert torch.equal(*states)

    @pytest.mark.parametrize("keep", ["last", "best"])
    def test_a_sample_does_not_depend_on_its_batch(self, keep: Any) -> None:
        attack = PGD(**PLAIN, restarts=2, keep=keep)
        ids = torch.arange(50, 58)
        whole = attack(Mixed(), X, Y, source(), sample_ids=ids)
        for part in (torch.tensor([3]), torch.tensor([6, 1, 4])):
            alone = attack(Mixed(), X[part], Y[part], source(), sample_ids=ids[part])
            assert torch.allclose(alone, whole[part], atol=1e-6)


class TestTargets:
    def test_a_given_target_is_reached(self) -> None:
        target = (Y + 1) % 4
        attack = PGD(eps=0.5, step_size=0.05, steps=30, loss="margin")
        result = attack.run(Mixed(), X, Y, source(), target=target)
        assert (logits_of(result.x_adv).argmax(1) == target).all()
        assert result.cost == Cost(31, 30)

    @pytest.mark.parametrize("loss", ["ce", "dlr", "margin"])
    def test_the_least_likely_class_gains(self, loss: str) -> None:
        target = logits_of(X).argmin(1)
        x_adv = PGD(**PLAIN, loss=loss, targets="least_likely")(Mixed(), X, Y, source())
        before, after = cross_entropy(logits_of(X), target), cross_entropy(logits_of(x_adv), target)
        assert (after < before).all()

    def test_random_targets_follow_the_generator(self) -> None:
        attack = PGD(**PLAIN, random_start=False, targets="random")
        first, again, other = (attack(Mixed(), X, Y, source(seed)) for seed in (0, 0, 1))
        assert torch.equal(first, again) and not torch.equal(first, other)

    def test_wrong_targets(self) -> None:
        model = Mixed()
        cases: list[tuple[Any, Any, str]] = [
            (PGD(), Y, "`target`: expected other classes"),
            (PGD(targets="random"), (Y + 1) % 4, "`target`: expected None"),
            (PGD(loss="kl"), (Y + 1) % 4, "`loss`: expected a loss with a targeted form"),
        ]
        for attack, target, message in cases:
            with untouched(model), pytest.raises(ArgumentError, match=message):
                attack(model, X, Y, source(), target=target)


class TestLosses:
    def test_kl_rises_from_the_clean_logits(self) -> None:
        model = Counting(Mixed())
        attack = PGD(**PLAIN, loss="kl")
        start = PGD(eps=1 / 8, step_size=1e-12, steps=1)(Mixed(), X, Y, source())
        result = attack.run(model, X, Y, source())
        far, near = (kl(logits_of(x), logits_of(X)) for x in (result.x_adv, start))
        assert (far > near).all()
        assert result.cost == Cost(5, 4) == Cost(model.forwards, model.backwards)

    def test_dlr_with_three_classes_is_noted(self) -> None:
        model = FixedLogits(torch.eye(3))
        result = PGD(loss="dlr").run(model, images(2, 3), torch.tensor([0, 1]))
        assert "margin was taken" in result.notes[0]


class TestEot:
    def test_gradients_are_averaged(self) -> None:
        """Slopes 4 and -6 in turn: their mean goes down, the first alone goes up."""

        class Drawing(nn.Module):
            calls = 0

            def forward(self, x: Tensor) -> Tensor:
                self.calls += 1
                slope = 4.0 if self.calls % 2 else -6.0
                return torch.cat([-slope * x, torch.zeros_like(x)], dim=1)

        def after(eot: int) -> float:
            attack = PGD(
                eps=0.25, step_size=0.125, steps=1, random_start=False, loss="margin", eot=eot
            )
            return attack(Drawing(), torch.full((1, 1), 0.5), torch.tensor([0])).item()

        assert (after(1), after(2)) == (0.625, 0.375)

    def test_passes(self) -> None:
        model = Counting(Mixed())
        result = PGD(steps=3, eot=5, keep="best").run(model, X, Y)
        assert result.cost == Cost(20, 15) == Cost(model.forwards, model.backwards)


class TestRadii:
    @pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
    def test_one_radius_a_sample_equals_one_call_each(self, norm: str) -> None:
        eps = torch.tensor([0.0, 0.125, 0.5, 1.0, 0.25, 2.0, 0.0625, 4.0]) / 4
        attack = PGD(norm=norm, step_size=None, steps=3)
        whole = attack(Mixed(), X, Y, source(), eps=eps)
        assert torch.equal(whole[0], X[0])
        for i in range(1, 8):
            one = torch.tensor([i])
            same = attack(Mixed(), X[one], Y[one], source(), eps=eps[i].item(), sample_ids=one)
            assert torch.allclose(whole[i : i + 1], same, atol=1e-6)

    def test_a_number_takes_the_place_of_the_field(self) -> None:
        attack = PGD(eps=None, step_size=None)
        called = attack(Mixed(), X, Y, source(), eps=0.25)
        assert torch.equal(called, PGD(eps=0.25, step_size=None)(Mixed(), X, Y, source()))

    @pytest.mark.parametrize(
        "eps",
        [-0.1, 8, "8/255", torch.tensor([0.1]), torch.full((8,), -0.1), torch.ones(8).long()],
        ids=str,
    )
    def test_wrong_radii(self, eps: Any) -> None:
        model = Mixed()
        with untouched(model), pytest.raises((ArgumentError, ArgumentTypeError), match="`eps`"):
            PGD()(model, X, Y, eps=eps)


def test_labels_name_what_differs() -> None:
    plain, other = PGD(steps=20), PGD(steps=20, loss="dlr", momentum=1.0, restarts=5, eot=2)
    assert plain.label == "pgd-20" and other.label == "pgd-20-dlr-m1-r5-eot2"
    assert PGD(targets="least_likely").label == "pgd-10-least-likely"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"restarts": 0}, "`restarts`: expected an integer >= 1"),
        ({"restarts": 2, "random_start": False}, "`restarts`.*random_start=True"),
        ({"loss": "kl", "random_start": False}, "`loss`.*random_start=True"),
        ({"loss": "kl", "targets": "random"}, "`loss`: expected a loss with a targeted form"),
        ({"loss": None}, "`loss`: expected one of"),
        ({"eot": 1.5}, "`eot`: expected an integer >= 1"),
        ({"momentum": -1.0}, "`momentum`: expected a number > 0"),
        ({"targets": "likely"}, "`targets`: expected 'least_likely' or 'random' or None"),
    ],
)
def test_wrong_fields(options: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        PGD(**options)


class TestUntilFooled:
    """keep="adversarial"."""

    WAVY = Wavy(dtype=torch.float32)
    X = pictures(24, torch.float32)
    Y = predicted(WAVY, X)
    COMMON: dict[str, Any] = dict(eps=0.012, step_size=0.003, keep="adversarial")

    def test_by_hand(self) -> None:
        """Pixel x, logits (0.5 - x, 0): wrong above 1/2. Steps of 1/16 from 0.25, 0.4375, 0.5625:
        the first never gets there, the second by two steps, the third is wrong as it is."""
        model = FixedLogits(torch.tensor([[-1.0], [0.0]]), torch.tensor([0.5, 0.0]))
        x, y = torch.tensor([[0.25], [0.4375], [0.5625]]), torch.tensor([0, 0, 0])
        attack = PGD(eps=0.1875, step_size=0.0625, steps=3, random_start=False, keep="adversarial")
        for compact in (True, False):
            result = replace(attack, compact=compact).run(model, x, y)
            assert result.x_adv[:, 0].tolist() == [0.4375, 0.5625, 0.5625]
            assert result.fooled is not None and result.fooled.tolist() == [False, True, True]
            assert result.cost == Cost(4, 3)
            images = (3 + 2 + 2 + 1, 3 + 2 + 2) if compact else (12, 9)
            assert (result.cost.forward_images, result.cost.backward_images) == images

    @pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
    @pytest.mark.parametrize("more", [{}, {"momentum": 1.0}, {"restarts": 3}, {"eot": 2}], ids=str)
    def test_leaving_changes_nothing_but_the_cost(self, norm: Any, more: Any) -> None:
        eps = {"linf": 0.012, "l2": 0.1, "l1": 0.7}[norm]
        attack = PGD(norm=norm, eps=eps, step_size=None, steps=8, keep="adversarial", **more)
        leaving = attack.run(self.WAVY, self.X, self.Y, source())
        staying = replace(attack, compact=False).run(self.WAVY, self.X, self.Y, source())
        assert leaving.fooled is not None and 3 < leaving.fooled.sum() < 24
        assert torch.equal(leaving.fooled, staying.fooled)
        assert torch.equal(leaving.fooled, predicted(self.WAVY, leaving.x_adv) != self.Y)
        assert torch.allclose(leaving.x_adv, staying.x_adv, atol=1e-5)
        assert leaving.cost.forward_images < staying.cost.forward_images

    def test_it_fools_whatever_the_last_iterate_fools(self) -> None:
        last = replace(PGD(**self.COMMON), keep="last")(self.WAVY, self.X, self.Y, source())
        found = PGD(**self.COMMON).run(self.WAVY, self.X, self.Y, source())
        by_last = predicted(self.WAVY, last) != self.Y
        assert found.fooled is not None and (found.fooled | ~by_last).all()
        assert torch.allclose(found.x_adv[~found.fooled], last[~found.fooled], atol=1e-5)

    def test_a_target_is_reached_or_not(self) -> None:
        target = (self.Y + 1) % 6
        result = PGD(eps=0.03, step_size=0.005, keep="adversarial").run(
            self.WAVY, self.X, self.Y, source(), target=target
        )
        assert result.fooled is not None and 1 < result.fooled.sum() < 24
        assert torch.equal(result.fooled, predicted(self.WAVY, result.x_adv) == target)

    def test_when_all_are_fooled_it_is_over(self) -> None:
        result = PGD(eps=0.5, step_size=0.1, steps=50, keep="adversarial").run(
            self.WAVY, self.X, self.Y, source()
        )
        assert result.fooled is not None and result.fooled.all() and result.cost.forwards < 20
