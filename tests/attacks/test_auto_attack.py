"""AutoAttack: its components, who is attacked by which, and what counts as fooled."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tiny_models import untouched
from torch import Tensor, nn
from wavy import Wavy, pictures, predicted

from roli_fast.attacks import APGD, APGDT, Attack, AttackResult, AutoAttack
from roli_fast.attacks.base import AttackInputs
from roli_fast.attacks.ensemble import search_in_turn
from roli_fast.compat.original_draws import OriginalAutoAttack
from roli_fast.engine import Cost

EPS = {"linf": 0.02, "l2": 0.12, "l1": 0.8}
QUICK: dict[str, Any] = dict(steps=4, n_queries=10)
STANDARD = ["apgd-ce-100", "apgd-t-dlr-100", "fab-t-100", "square-5000"]


@pytest.mark.parametrize(
    ("version", "norm", "labels"),
    [
        ("standard", "linf", STANDARD),
        ("standard", "l2", STANDARD),
        (
            "standard",
            "l1",
            ["apgd-ce-100-r5-large", "apgd-t-dlr-100-large", "fab-t-100", "square-5000"],
        ),
        (
            "plus",
            "l2",
            [
                "apgd-ce-100-r5",
                "apgd-dlr-100-r5",
                "fab-100-r5",
                "square-5000",
                "apgd-t-dlr-100",
                "fab-t-100",
            ],
        ),
        ("rand", "linf", ["apgd-ce-100-eot20", "apgd-dlr-100-eot20"]),
    ],
)
def test_a_version_has_the_components_of_the_authors_code(
    version: Any, norm: str, labels: list[str]
) -> None:
    parts: list[Any] = list(AutoAttack(norm=norm, eps=0.5, version=version).parts)
    assert [part.label for part in parts] == labels
    assert {(part.norm, part.eps, part.bounds) for part in parts} == {(norm, 0.5, (0.0, 1.0))}
    targets = {part.label: part.targets for part in parts if hasattr(part, "targets")}
    if version != "rand":
        assert targets == {
            labels[-3 if version == "standard" else -2]: 5 if norm == "l1" else 9
        } | {"fab-t-100": 9}
        (square,) = [part for part in parts if part.label.startswith("square")]
        assert not square.rescale_schedule and square.p_init == 0.8


@pytest.mark.parametrize("norm", ["linf", "l1"])
def test_the_protocol_of_multi_norm_papers_is_ten_runs_of_apgd(norm: str) -> None:
    """One of CE and nine targets; in l1 five and five, with large radii; nothing else."""
    ce, targeted = parts = AutoAttack(norm=norm, eps=0.5, version="apgd").parts
    assert parts == AutoAttack(norm=norm, eps=0.5).parts[:2]
    assert isinstance(ce, APGD) and isinstance(targeted, APGDT)
    assert (ce.restarts, targeted.targets) == ((5, 5) if norm == "l1" else (1, 9))
    assert ce.large_radius == targeted.large_radius == (norm == "l1")


@dataclass(frozen=True)
class Claims(Attack):
    """Changes the first pixel of the samples with these ids to 1, and says that this fooled."""

    ids: tuple[int, ...]
    name: str = "claims"
    flags: bool = True

    @property
    def label(self) -> str:
        return self.name

    def search(self, inputs: AttackInputs) -> AttackResult:
        ids, source = inputs.ids, inputs.generator
        assert source is not None
        SEEN.append((self.name, ids.tolist(), source.initial_seed()))
        hit = torch.isin(ids, torch.tensor(self.ids))
        x_adv = inputs.x.clone()
        x_adv[hit, 0] = 1.0
        return AttackResult(x_adv, Cost(2, 1), hit if self.flags else None, ("a note",))


SEEN: list[Any] = []


class Threshold(nn.Module):
    """(B, 2) -> logits of 2 classes: class 1 where the second pixel, plus the first's, is > 1."""

    def forward(self, x: Tensor) -> Tensor:
        total = x.sum(1)
        return torch.stack([torch.ones_like(total), total], dim=1)


@pytest.fixture
def asked() -> AttackInputs:
    SEEN.clear()
    x = torch.tensor([[0.0, 0.5], [0.0, 0.0], [0.0, 0.5], [0.0, 0.5], [1.0, 0.5]])
    ids = torch.tensor([10, 11, 12, 13, 14])
    return AttackInputs(Threshold(), x, torch.zeros(5, dtype=torch.int64), sample_ids=ids)


def test_each_part_gets_what_is_left_and_what_it_says_is_checked(asked: AttackInputs) -> None:
    """Sample 14 is wrong to begin with; 11 stays right whatever the first part claims."""
    right = torch.tensor([True, True, True, True, False])
    parts = (Claims((10, 11), "one"), Claims((11, 12), "two", flags=False), Claims((), "three"))
    result = search_in_turn(parts, asked, right)
    assert [(name, ids) for name, ids, _ in SEEN] == [
        ("one", [10, 11, 12, 13]),
        ("two", [11, 12, 13]),
        ("three", [11, 13]),
    ]
    assert len({seed for _, _, seed in SEEN}) == 3
    assert result.fooled is not None and result.fooled_by is not None
    assert result.fooled.tolist() == [True, False, True, False, True]
    assert result.fooled_by.tolist() == [0, -1, 1, -1, -1]
    assert result.x_adv[:, 0].tolist() == [1, 0, 1, 0, 1]
    assert result.lost == 1
    assert result.notes == (
        "one: a note",
        "two: a note",
        "three: a note",
        "one: fooled 1 of 4; 1 found were right when asked again",
        "two: fooled 1 of 3",
        "three: fooled 0 of 2",
    )
    assert result.cost == Cost(3 * 2 + 2, 3)  # the third found nothing to ask about


@pytest.mark.parametrize(
    ("version", "norm"),
    [("standard", "linf"), ("plus", "l2"), ("rand", "linf"), ("apgd", "l1")],
)
def test_it_fools_at_least_whom_its_components_fool(norm: str, version: Any) -> None:
    model, x = Wavy(), pictures(8)
    y = predicted(model, x)
    y[0] = (y[0] + 1) % 6
    attack = AutoAttack(norm=norm, eps=EPS[norm], version=version, steps=3, n_queries=5)
    result = attack.run(model, x, y, torch.Generator().manual_seed(0))
    assert result.fooled is not None and result.fooled_by is not None
    assert torch.equal(predicted(model, result.x_adv) != y, result.fooled)
    assert torch.equal(result.x_adv[~result.fooled], x[~result.fooled])
    assert result.fooled[0] and result.fooled_by[0] == -1 and torch.equal(result.x_adv[0], x[0])
    assert torch.equal(result.fooled[1:], result.fooled_by[1:] >= 0)
    assert 2 <= result.fooled.sum() < 8
    text = f"{attack.parts[0].label}: fooled {int((result.fooled_by == 0).sum())} of 7"
    assert text in result.notes


def test_nobody_is_left_and_nobody_comes() -> None:
    model, x = Wavy(), pictures(3)
    wrong = (predicted(model, x) + 1) % 6
    result = AutoAttack(norm="linf", eps=0.02, **QUICK).run(model, x, wrong)
    assert result.cost == Cost(1, 0) and torch.equal(result.x_adv, x)
    assert AutoAttack(**QUICK).run(model, x[:0], wrong[:0]).x_adv.shape == (0, 3, 8, 8)


def test_the_official_draws_need_no_generator_and_leave_the_global_one_alone() -> None:
    model, x = Wavy(), pictures(6)
    y = predicted(model, x)
    attack = OriginalAutoAttack(norm="l2", eps=EPS["l2"], seed=3, **QUICK)
    with untouched(model):
        first = attack(model, x, y)
        assert torch.equal(attack(model, x, y, torch.Generator().manual_seed(9)), first)
