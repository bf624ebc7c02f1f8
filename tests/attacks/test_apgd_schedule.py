"""APGD's schedule against numbers worked by hand."""

from typing import Any

import pytest
import torch
from torch import Tensor

from roli_fast.attacks.apgd import large_radius_stages
from roli_fast.attacks.apgd_search import Search, begin, checkpoints, sparse_checkpoints
from roli_fast.attacks.base import Ball
from roli_fast.attacks.objective import Goal
from roli_fast.attacks.passes import Samples
from roli_fast.norms import NORMS


def search(
    norm: str,
    looks: dict[int, int],
    loss: list[float],
    density: float | None = 0.2,
    start: Tensor | None = None,
) -> Any:
    """One before its first step: images of ten entries at 1/2, eps 1/2, these looks back."""
    x, count = torch.full((len(loss), 10), 0.5), len(loss)
    samples = Samples(x, Goal("ce", torch.zeros(count).long()), torch.arange(count), 0.5)
    ball, first = Ball(NORMS[norm], 0.5, (0.0, 1.0)), x.clone() if start is None else start
    settings: dict[str, Any] = dict(steps=100, rho=0.75, density=density)
    found = begin(ball, samples, first, torch.zeros_like(x), torch.tensor(loss), **settings)
    found.looks = looks
    return found


def look_back(on: Search, step: int, loss: list[float], best: list[float]) -> Any:
    on.loss, on.best_loss = torch.tensor(loss), torch.tensor(best)
    back = on.look_back(step)
    return None if back is None else back.tolist()


@pytest.mark.parametrize(
    ("steps", "looks"),
    [
        (100, {22: 22, 41: 19, 57: 16, 70: 13, 80: 10, 87: 7, 93: 6, 99: 6}),
        (10, {2: 2, 3: 1, 4: 1, 5: 1, 6: 1, 7: 1, 8: 1, 9: 1, 10: 1}),
        (20, {4: 4, 7: 3, 9: 2, 10: 1} | {n: 1 for n in range(11, 21)}),
        (1, {1: 1}),
    ],
)
def test_looks_back_come_after(steps: int, looks: dict[int, int]) -> None:
    assert checkpoints(steps) == looks


def test_l1_looks_back_every_four_percent() -> None:
    assert sparse_checkpoints(100) == dict.fromkeys(range(4, 101, 4), 4)
    assert list(sparse_checkpoints(30)) == list(range(1, 31))


@pytest.mark.parametrize(
    ("steps", "stages"), [(100, (30, 30, 40)), (11, (4, 4, 3)), (4, (2, 2, 0)), (5, (2, 2, 1))]
)
def test_large_radius_stages(steps: int, stages: tuple[int, ...]) -> None:
    assert large_radius_stages(steps) == list(zip((3, 2, 1), stages, strict=True))


class TestHalving:
    def test_a_step_is_halved_unless_more_than_three_quarters_of_the_steps_helped(self) -> None:
        """Of four steps 4, 3 and 2 raise the loss; all losses are above 0, where the count begins.

        Only 4 > 0.75 * 4. The first step is two eps.
        """
        halving = search("linf", {6: 4}, [0.5, 0.5, 0.5])
        assert halving.step_size.tolist() == [1.0, 1.0, 1.0]
        for loss in ([1.0, 1.0, 1.0], [2.0, 0.9, 0.9], [3.0, 2.0, 0.8]):
            assert look_back(halving, 5, loss, loss) is None  # it is not time
        assert look_back(halving, 6, [4.0, 3.0, 2.0], [4.0, 3.0, 2.0]) == [False, True, True]
        assert halving.step_size.tolist() == [1.0, 0.5, 0.5]
        assert halving.increases.tolist() == [0, 0, 0]

    def test_the_first_loss_is_compared_with_zero(self) -> None:
        """As in the authors' code: a DLR of -1 is no increase over a start of -2."""
        halving = search("linf", {}, [-2.0])
        look_back(halving, 1, [-1.0], [-1.0])
        assert halving.increases.tolist() == [0]
        look_back(halving, 2, [-0.5], [-0.5])
        assert halving.increases.tolist() == [1]

    def test_a_step_that_was_kept_and_brought_no_new_best_is_halved(self) -> None:
        """Two looks, one step each, the loss rising to the same best: kept, then halved, then kept
        for once, for a step just halved may need more than one period."""
        halving = search("linf", {1: 1}, [9.0])
        seen = [look_back(halving, 1, [loss], [9.0]) for loss in (1.0, 2.0, 3.0, 4.0)]
        assert seen == [[False], [True], [False], [True]]
        assert halving.step_size.tolist() == [0.25]


class TestSparsity:
    def test_it_starts_with_eps_and_counts_all_entries(self) -> None:
        sparsity = search("l1", {}, [0.0, 0.0])
        assert sparsity.step_size.tolist() == [0.5, 0.5]
        assert sparsity.density.tolist() == pytest.approx([0.2, 0.2])
        assert sparsity.changed.tolist() == [10, 10]

    def test_a_start_brings_its_own_density(self) -> None:
        start = torch.tensor([[0.6] * 3 + [0.5] * 7])
        sparsity = search("l1", {}, [0.0], None, start)
        assert sparsity.density.tolist() == pytest.approx([3 / 10 / 1.5])
        assert sparsity.changed.tolist() == [3]

    def test_sparser_means_long_steps_from_the_best_and_else_shorter_ones(self) -> None:
        """Changed entries 10 -> 9 (0.9 < 0.95: restart) and 10 -> 10."""
        sparsity, zeros = search("l1", {1: 1}, [0.0, 0.0]), [0.0, 0.0]
        sparsity.best_x = sparsity.samples.x + 0.01
        sparsity.best_x[0, 0] = 0.5
        assert look_back(sparsity, 2, zeros, zeros) is None  # it is not time
        assert look_back(sparsity, 1, zeros, zeros) == [True, False]
        assert sparsity.step_size.tolist() == pytest.approx([0.5, 0.5 / 1.5])
        assert sparsity.density.tolist() == pytest.approx([0.6, 10 / 15])
        for _ in range(10):
            look_back(sparsity, 1, zeros, zeros)
        assert sparsity.step_size.tolist() == pytest.approx([0.05, 0.05])  # a tenth of eps
