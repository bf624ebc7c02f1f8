"""APGD's schedule against numbers worked by hand."""

from typing import Any

import pytest
import torch

from roli_fast.attacks.apgd import large_radius_stages
from roli_fast.attacks.apgd_search import Halving, Sparsity, checkpoints, sparse_checkpoints
from roli_fast.attacks.objective import Goal
from roli_fast.attacks.passes import Samples
from roli_fast.norms import NORMS

BOX = (0.0, 1.0)


def samples(count: int, entries: int = 10) -> Samples:
    y = torch.zeros(count, dtype=torch.long)
    return Samples(torch.full((count, entries), 0.5), Goal("ce", y), torch.arange(count), 0.5)


@pytest.mark.parametrize(
    ("steps", "looks"),
    [
        (100, {22: 22, 41: 19, 57: 16, 70: 13, 80: 10, 87: 7, 93: 6, 99: 6}),
        (10, {2: 2, 3: 1, 4: 1, 5: 1, 6: 1, 7: 1, 8: 1, 9: 1, 10: 1}),
        (20, {4: 4, 7: 3, 9: 2, 10: 1} | {n: 1 for n in range(11, 21)}),
        (5, {1: 1, 2: 1, 3: 1, 4: 1, 5: 1}),
        (1, {1: 1}),
    ],
)
def test_looks_back_come_after(steps: int, looks: dict[int, int]) -> None:
    assert checkpoints(steps) == looks


def test_l1_looks_back_every_four_percent() -> None:
    assert list(sparse_checkpoints(100)) == list(range(4, 101, 4))
    assert list(sparse_checkpoints(30)) == list(range(1, 31))
    assert set(sparse_checkpoints(100).values()) == {4}


@pytest.mark.parametrize(
    ("steps", "stages"),
    [(100, (30, 30, 40)), (10, (3, 3, 4)), (11, (4, 4, 3)), (4, (2, 2, 0)), (5, (2, 2, 1))],
)
def test_large_radius_stages(steps: int, stages: tuple[int, ...]) -> None:
    assert large_radius_stages(steps) == list(zip((3, 2, 1), stages, strict=True))


class TestHalving:
    def begin(self, loss: list[float], looks: dict[int, int]) -> Halving:
        given = samples(len(loss)), torch.tensor(loss)
        return Halving.begin(NORMS["linf"], BOX, looks, 0.75, *given)

    def observe(self, control: Halving, step: int, loss: list[float], best: list[float]) -> Any:
        nothing = torch.empty(len(loss), 10)
        given = torch.tensor(loss), nothing, torch.tensor(best), samples(len(loss))
        return control.observe(step, *given)

    def test_the_first_step_is_two_eps(self) -> None:
        control = self.begin([0.0], {})
        assert control.step_size.tolist() == [1.0]

    def test_a_step_is_halved_unless_more_than_three_quarters_of_the_steps_helped(self) -> None:
        """Of four steps 4, 3 and 2 raise the loss; all losses are above 0, where the count begins.

        Only 4 > 0.75 * 4.
        """
        control = self.begin([0.5, 0.5, 0.5], {6: 4})
        for loss in ([1.0, 1.0, 1.0], [2.0, 0.9, 0.9], [3.0, 2.0, 0.8]):
            assert self.observe(control, 5, loss, loss) is None  # it is not time
        back = self.observe(control, 6, [4.0, 3.0, 2.0], [4.0, 3.0, 2.0])
        assert back.tolist() == [False, True, True]
        assert control.step_size.tolist() == [1.0, 0.5, 0.5]
        assert control.increases.tolist() == [0, 0, 0]

    def test_the_first_loss_is_compared_with_zero(self) -> None:
        """As in the authors' code: a DLR of -1 is no increase over a start of -2."""
        control = self.begin([-2.0], {})
        self.observe(control, 1, [-1.0], [-1.0])
        assert control.increases.tolist() == [0]
        self.observe(control, 2, [-0.5], [-0.5])
        assert control.increases.tolist() == [1]

    def test_a_step_that_was_kept_and_brought_no_new_best_is_halved(self) -> None:
        """Two looks, one step each, the loss rising to the same best: kept, then halved, then kept
        for once, for a step just halved may need more than one period."""
        control = self.begin([9.0], {1: 1})
        seen = [self.observe(control, 1, [loss], [9.0]).item() for loss in (1.0, 2.0, 3.0, 4.0)]
        assert seen == [False, True, False, True]
        assert control.step_size.tolist() == [0.25]


class TestSparsity:
    def begin(self, looks: dict[int, int], density: float | None, part: Any, start: Any) -> Any:
        return Sparsity.begin(NORMS["l1"], BOX, looks, density, part, start)

    def test_it_starts_with_eps_and_counts_all_entries(self) -> None:
        control = self.begin({}, 0.2, samples(2), samples(2).x)
        assert control.step_size.tolist() == [0.5, 0.5]
        assert control.density.tolist() == pytest.approx([0.2, 0.2])
        assert control.changed.tolist() == [10, 10]

    def test_a_start_brings_its_own_density(self) -> None:
        part = samples(1)
        start = part.x.clone()
        start[0, :3] += 0.1
        control = self.begin({}, None, part, start)
        assert control.density.tolist() == pytest.approx([3 / 10 / 1.5])
        assert control.changed.tolist() == [3]

    def test_sparser_means_long_steps_from_the_best_and_else_shorter_ones(self) -> None:
        """Changed entries 10 -> 9 (0.9 < 0.95: restart) and 10 -> 10."""
        part = samples(2)
        control = self.begin({1: 1}, 0.2, part, part.x)
        loss = torch.zeros(2)
        best = part.x + 0.01
        best[0, 0] = 0.5
        assert control.observe(2, loss, best, loss, part) is None  # it is not time
        back = control.observe(1, loss, best, loss, part)
        assert back is not None and back.tolist() == [True, False]
        assert control.step_size.tolist() == pytest.approx([0.5, 0.5 / 1.5])
        assert control.density.tolist() == pytest.approx([0.6, 10 / 15])
        for _ in range(10):
            control.observe(1, loss, best, loss, part)
        assert control.step_size.tolist() == pytest.approx([0.05, 0.05])  # a tenth of eps
