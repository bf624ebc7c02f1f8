"""Each warning: a model that shows it, and one that does not."""

import logging
from typing import Any

import pytest
import torch
from tiny_models import Counting, untouched
from torch import Tensor, nn
from wavy import Wavy, pictures, predicted

from roli_fast.attacks import APGD, FAB, PGD, AutoAttack, Square
from roli_fast.attacks.base import Ball
from roli_fast.attacks.warning_signs import Sign, black_box, first_look, log_once, pgd_gap
from roli_fast.engine import Cost, Engine
from roli_fast.norms import NORMS

BALL = Ball(NORMS["linf"], 0.02, (0.0, 1.0))


class Changed(nn.Module):
    """Wavy with something done to its input, and to its logits."""

    def __init__(self, before: Any = None, after: Any = None) -> None:
        super().__init__()
        self.inner, self.before, self.after = Wavy().eval(), before, after
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        logits = self.inner(self.before(x) if self.before else x)
        return self.after(logits) if self.after else logits


def kinds(model: nn.Module, **options: Any) -> list[str]:
    x = pictures(20)
    return [sign.kind for sign in first_look(model, x, predicted(model, x), BALL, **options).signs]


def noisy(logits: Tensor) -> Tensor:
    return logits + 0.01 * torch.randn(logits.shape, dtype=logits.dtype)


def rounded(x: Tensor) -> Tensor:
    """Steps of 0.2, with a gradient that points nowhere useful: against the ascent."""
    return (x * 5).round() / 5 - (x - x.detach()) * 0.1


def saturated(logits: Tensor) -> Tensor:
    """So sure that in fp32 the cross-entropy is exactly zero, and so is its gradient."""
    return logits.float() * 1e5


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (Changed(), []),
        (Changed(after=noisy), ["random"]),
        (Changed(after=lambda logits: logits.softmax(1)), ["probabilities"]),
        (Changed(after=saturated), ["zero-ce"]),
        (Changed(before=rounded), ["flat"]),
        (Changed(before=lambda x: x.detach() + 0 * x), ["zero-dlr", "zero-ce"]),
        (Changed().train(), ["train-mode"]),
    ],
    ids=["none", "random", "probabilities", "saturated", "flat", "zero", "train"],
)
def test_a_model_shows_its_sign_and_no_other(model: nn.Module, expected: list[str]) -> None:
    with torch.random.fork_rng():
        assert kinds(model) == expected


def test_version_rand_wants_a_model_that_draws() -> None:
    with torch.random.fork_rng():
        assert kinds(Changed(after=noisy), draws=True) == []
        assert kinds(Changed(), draws=True) == ["not-random"]


def test_a_part_of_the_model_in_train_mode_is_seen_and_the_model_given_back() -> None:
    model = Changed()
    model.inner.conv.train()
    with untouched(model):
        assert kinds(model) == ["train-mode"]
    assert kinds(Engine(batch_size=8).bind(model)) == ["train-mode"]  # type: ignore[arg-type]


def test_what_a_look_costs_and_sees() -> None:
    model, x = Counting(Changed()).eval(), pictures(80)
    y = predicted(model, x)
    y[::2] = (y[::2] + 1) % 6
    model.forwards = 0
    look = first_look(model, x, y, BALL._replace(eps=torch.full((80,), 0.02).double()))
    assert look.cost == Cost(4, 2) == Cost(model.forwards, model.backwards)
    assert (look.cost.forward_images, look.cost.backward_images) == (80 + 3 * 40, 2 * 40)
    assert look.right.tolist() == [False, True] * 40
    nobody = first_look(model, x, (predicted(model, x) + 1) % 6, BALL)
    assert nobody.cost == Cost(1, 0) and nobody.signs == []


@pytest.mark.parametrize(
    ("parts", "fooled", "found"),
    [
        ((APGD(), FAB(), Square()), (5, 2, 1), "fooled 1 that 2 searches"),
        ((APGD(), Square(), FAB()), (5, 3, 2), "fooled 3 that 1 searches"),
        ((APGD(), Square()), (5, 0), None),
        ((Square(), APGD()), (5, 1), None),
    ],
)
def test_a_black_box_that_wins_is_a_sign(parts: Any, fooled: Any, found: str | None) -> None:
    signs = black_box(parts, fooled)
    assert (found is None and signs == []) or (found is not None and found in signs[0].text)


@pytest.mark.parametrize(
    ("parts", "fooled", "found"),
    [
        ((PGD(), APGD()), (30, 8), "36.0% stay right under pgd-10 and 28.0% under"),  # 8 of 100
        ((PGD(), APGD()), (30, 7), None),
        ((PGD(), APGD(), Square()), (30, 3, 5), "36.0% stay right under pgd-10 and 28.0%"),
        ((PGD(), PGD(steps=50), APGD()), (30, 8, 3), None),  # the longer PGD found it
        ((PGD(steps=3), APGD()), (30, 20), None),  # too short to tell
        ((APGD(), Square()), (30, 20), None),
    ],
)
def test_pgd_that_finds_far_less_than_apgd_is_a_sign(
    parts: Any, fooled: Any, found: str | None
) -> None:
    """Of 100 images 66 are right as they are."""
    signs = pgd_gap(parts, fooled, 66, 100)
    assert (found is None and signs == []) or (found is not None and found in signs[0].text)


def test_masked_gradients_show_in_the_result_of_autoattack() -> None:
    """The gradient is zero and the model is not robust: only Square finds that."""
    model, x = Changed(before=lambda x: x.detach() + 0 * x), pictures(10)
    attack = AutoAttack(
        norm="linf", eps=0.2, version="custom", attacks=("apgd-ce", "square"), steps=2, n_queries=40
    )
    result = attack.run(model, x, predicted(model, x), torch.Generator().manual_seed(0))
    notes = "\n".join(result.notes)
    assert "the gradient of ce is zero for 10 of 10" in notes
    assert "square-40, which sees no gradient, fooled" in notes


def test_each_kind_is_logged_once_for_a_model(caplog: pytest.LogCaptureFixture) -> None:
    signs = [Sign("a", "first"), Sign("b", "second")]
    one, two = Changed(), Changed()
    with caplog.at_level(logging.WARNING, "roli_fast.attacks"):
        assert log_once(one, signs) == ("first", "second")
        assert log_once(Engine().bind(one), [Sign("a", "again")]) == ("again",)
        log_once(two, signs[:1])
    assert [record.message for record in caplog.records] == ["first", "second", "first"]
