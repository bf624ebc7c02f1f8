"""A search in low precision: what it reports holds for the plain model."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tiny_attacks import generator as source
from tiny_models import FixedLogits, images
from torch import Tensor, nn
from wavy import Wavy, pictures, predicted

from roli_fast.attacks import APGD, FGSM, PGD, Attack, AttackResult
from roli_fast.attacks.base import AttackInputs
from roli_fast.attacks.recheck import misclassified_as, plain, search
from roli_fast.engine import Cost, Engine, bound

X = pictures(24, torch.float32)
NET = Wavy(dtype=torch.float32)
Y = predicted(NET, X)


class ShortSighted(nn.Module):
    """Under autocast it takes the images in `wrong` for class 1; they are its first pixel."""

    def __init__(self, wrong: list[float]) -> None:
        super().__init__()
        self.wrong = torch.tensor(wrong)
        self.inner = FixedLogits(torch.tensor([[0.0, -1.0], [0.0, 0.0]]), torch.tensor([0.5, 0.0]))

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            logits = nn.functional.linear(x, self.inner.weight.float(), self.inner.bias.float())
        if torch.is_autocast_enabled("cpu"):
            struck = torch.isin(x[:, 0].detach(), self.wrong)
            logits = torch.where(struck[:, None], logits.flip(1), logits)
        return logits


def points(*second: float) -> Tensor:
    """(B, 2): the number of the sample, which nobody looks at, and the pixel that decides."""
    return torch.tensor([[0.125 * (i + 1), value] for i, value in enumerate(second)])


def test_who_is_wrong_in_bf16_alone_is_searched_by_the_plain_model() -> None:
    """Right below 1/2, radius 1/8: 0.25 is robust, 0.4375 is not; both look wrong to begin with."""
    x, y = points(0.25, 0.4375, 0.4375, 0.25), torch.zeros(4, dtype=torch.int64)
    model = Engine(dtype=torch.bfloat16).bind(ShortSighted([0.125, 0.25]))
    checked = search(APGD(eps=0.125, steps=5), AttackInputs(model, x, y, source()))
    assert checked.lost.tolist() == [True, True, False, False]
    assert checked.regained == 1 and checked.result.fooled is not None
    assert checked.result.fooled.tolist() == [False, True, True, False]
    assert torch.equal(checked.result.x_adv[[0, 3]], x[[0, 3]])
    assert torch.equal(
        predicted(plain(model).model, checked.result.x_adv), y.new_tensor([0, 1, 1, 0])
    )  # pyright: ignore


@dataclass(frozen=True)
class Fixed(Attack):
    """Returns what it was given, and notes how it was called."""

    found: Any
    calls: Any

    def search(self, inputs: AttackInputs) -> AttackResult:
        draw = torch.rand(1, generator=inputs.generator).item()
        self.calls.append((bound(inputs.model).engine.low_precision_dtype, draw, inputs))
        rows = inputs.ids
        return AttackResult(self.found[0][rows], Cost(3, 2, 30, 20), self.found[1][rows], ("a",))


def test_the_second_search_has_the_same_draws_and_the_lost_ones_alone() -> None:
    calls: list[Any] = []
    wrong = NET(X).argsort(1)[:, 0]
    claimed = torch.tensor([True] * 6 + [False] * 18)
    generator, twin = source(3), source(3)
    radii = torch.linspace(1, 2, 24)
    y = torch.where(torch.arange(24) < 4, Y, wrong)  # 4 and 5 are adversarial as they are
    model = Engine(dtype=torch.bfloat16).bind(NET)
    checked = search(Fixed((X, claimed), calls), AttackInputs(model, X, y, generator, eps=radii))
    assert [call[0] for call in calls] == [torch.bfloat16, None]
    assert calls[0][1] == calls[1][1] == torch.rand(1, generator=twin).item()
    assert torch.equal(generator.get_state(), twin.get_state())
    second = calls[1][2]
    assert second.ids.tolist() == [0, 1, 2, 3]
    assert torch.equal(second.eps, radii[:4])
    assert checked.lost.nonzero()[:, 0].tolist() == [0, 1, 2, 3] and checked.regained == 0
    assert checked.result.fooled is not None
    assert checked.result.fooled.nonzero()[:, 0].tolist() == [4, 5]
    assert checked.result.notes == ("a",)
    assert checked.result.cost == Cost(3 + 1 + 3 + 1, 4)  # each search and its check
    assert checked.result.cost.forward_images == 30 + 6 + 30 + 4


@pytest.mark.parametrize("engine", [Engine(fold=True), Engine(attention="products")], ids=str)
def test_what_changes_last_bits_in_fp32_is_searched_again_too(engine: Engine) -> None:
    calls: list[Any] = []
    attack = Fixed((X, torch.ones(24, dtype=torch.bool)), calls)
    for one, searches in ((engine, 2), (Engine(batch_size=5), 1)):
        checked = search(attack, AttackInputs(NET, X, Y, source(), engine=one))
        assert checked.lost.all() and len(calls) == searches
        calls.clear()


def test_the_global_generator_moves_as_without_a_check() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        attack, model = PGD(eps=0.01), Engine(dtype=torch.bfloat16).bind(NET)
        attack(model, X, Y)
        after = torch.get_rng_state()
        torch.manual_seed(1)
        search(attack, AttackInputs(model, X, Y))
        assert torch.equal(torch.get_rng_state(), after)


def test_an_attack_that_never_looks_gets_flags_and_loses_nothing() -> None:
    checked = search(FGSM(eps=0.02), AttackInputs(NET, X, Y, source()))
    assert checked.result.fooled is not None and checked.result.fooled.any()
    assert torch.equal(checked.result.fooled, predicted(NET, checked.result.x_adv) != Y)
    assert not checked.lost.any() and checked.result.cost == Cost(2, 1)


def test_nothing_to_look_at_costs_nothing_and_a_nan_is_misclassified() -> None:
    classes, cost = misclassified_as(NET, X, Y, torch.zeros(24, dtype=torch.bool))
    assert (classes == -1).all() and cost == Cost(0, 0)
    model = FixedLogits(torch.full((2, 3), torch.nan))
    found = misclassified_as(model, images(2, 3), Y[:2] * 0, torch.tensor([True, True]))[0]
    assert found.tolist() == [1, 1]  # what is not the label


def test_a_wrong_class_that_is_not_the_target_counts() -> None:
    """Its target is the least likely class; misclassified is what the plain model says it is."""
    attack = PGD(eps=0.2, steps=2, targets="least_likely", restarts=2)
    alone = attack.run(NET, X, Y, source())
    wrong = predicted(NET, alone.x_adv) != Y
    assert alone.fooled is not None and int(wrong.sum()) > int(alone.fooled.sum())
    assert torch.equal(fooled(search(attack, AttackInputs(NET, X, Y, source())).result), wrong)


def fooled(result: AttackResult) -> Tensor:
    assert result.fooled is not None
    return result.fooled
