"""Square attack: random search that never sees a gradient (Andriushchenko et al., "Square Attack: a
query-efficient black-box adversarial attack via random search", ECCV 2020, arXiv:1912.00049)."""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from roli_fast.attacks.base import ATTACKS, AttackInputs, AttackResult, Ball, BallAttack
from roli_fast.attacks.objective import Criterion, Goal, check_target
from roli_fast.attacks.passes import Passes, Samples, column, put, take
from roli_fast.attacks.restarts import SearchResult, until_fooled
from roli_fast.errors import ArgumentError, check_choice, describe
from roli_fast.norms.base import check_offers
from roli_fast.norms.windows import Draws, Moves, Proposal
from roli_fast.ops.fused import check_generator, check_sample_ids
from roli_fast.ops.random_start import philox
from roli_fast.seeds import derive_seed

_SHRINKS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Queries of 10,000 after which the share of changed pixels halves."""
CHUNK = 32
"""Queries whose numbers are made at once: a small tensor operation costs its call, not its size."""
_START = 2**40
"""First counter of the numbers for the start; those of queries are below."""


@dataclass(frozen=True)
class SquareResult(AttackResult):
    """What Square found. `queries` (B,): forwards that each sample needed."""

    queries: Tensor | None = None


@ATTACKS.register("square")
@dataclass(frozen=True)
class Square(BallAttack):
    """Forwards alone: 1 for the clean images, and 1 + n_queries a run at most.

    Each query changes a window of random place in every image, and the change stays where it raises
    the loss. Samples that are fooled leave the batch at once; those that are wrong to begin with
    come back as they are. What was never fooled comes back as the image of highest loss. Images of
    any shape (B, C, H, W), and (B, C, L) and (B, D), where windows are intervals. With a `target`
    in the call a sample is fooled when it is classified as that.

    Args:
        n_queries: proposals of a run.
        restarts: number of runs; a run takes the samples that no run before it fooled.
        p_init: share of the pixels that the first windows cover.
        loss: "margin" or "ce", or a callable of (logits, y): what decides whether a change stays.
        rescale_schedule: halve the share after the same parts of a run for any n_queries; False
            halves it after the numbers of queries that are meant for 10,000, as AutoAttack does.
        compact: samples leave the batch as soon as they are fooled; false keeps all shapes as they
            are, without any wait for the device within a run. The result is the same.
    """

    n_queries: int = 5000
    restarts: int = 1
    p_init: float = 0.8
    loss: str | Criterion = "margin"
    rescale_schedule: bool = True
    compact: bool = True

    options = ("eps", "target")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_offers(self.norm, "square_moves")
        if not callable(self.loss):
            check_choice("loss", self.loss, ("margin", "ce"))

    @property
    def label(self) -> str:
        """ "square-5000" for 5,000 queries; restarts follow."""
        return f"square-{self.n_queries}" + (f"-r{self.restarts}" if self.restarts > 1 else "")

    def search(self, inputs: AttackInputs) -> SquareResult:
        ball, inputs = self.ball(inputs)
        x, y, ids, target = inputs.x, inputs.y, inputs.ids, inputs.target
        check_generator(inputs.generator, x)
        check_sample_ids(ids, x)
        moves, draws = self.moves(ball, x), self.draws(inputs)
        with inputs.gradient() as gradient:
            passes = Passes(gradient)
            logits = passes.clean(x, y)
            if target is not None:
                check_target(target, y, logits)
            samples = Samples(x, Goal(self.loss, y, target), ids, ball.eps)
            fooled = samples.goal.reached(logits)
            queries = torch.ones_like(y)

            def once(run: int, rows: Tensor) -> SearchResult:
                some = take(samples, rows)
                found, asked = self._search(passes, moves, draws(run, some.ids), some)
                queries.index_add_(0, rows, asked)
                return found

            runs = [partial(once, run) for run in range(self.restarts)]
            found = until_fooled(x, fooled, runs)
            cost, notes = gradient.cost, ball.notes
            return SquareResult(found.x_adv, cost, found.fooled, notes, queries)

    def draws(self, inputs: AttackInputs) -> Callable[[int, Tensor], Draws]:
        """(number of a run, sample ids) -> that run's numbers, for a subclass that draws otherwise.

        Here they depend on one draw of the generator, the run, the sample's id and the query alone.
        """
        source, device = inputs.generator, inputs.x.device
        key = int(torch.randint(2**62, (1,), generator=source, device=device))
        return lambda restart, ids: SampleDraws(("square", key, restart), ids)

    def moves(self, ball: Ball, x: Tensor) -> Moves:
        """How images are proposed."""
        channels, rows, columns = canvas(x)
        return ball.norm.square_moves(ball.bounds, channels, (rows, columns))

    def _search(
        self, passes: Passes, moves: Moves, draws: Draws, samples: Samples
    ) -> tuple[SearchResult, Tensor]:
        """One run over samples none of which is fooled yet, and the queries (B,) of each."""
        best = moves.start(samples.x, samples.eps, draws)
        loss, done = self._score(passes, best, samples.goal)
        found, queries = SearchResult(best, done, loss), torch.ones_like(samples.ids)
        here = torch.arange(len(samples), device=best.device)
        for query in range(self.n_queries):
            if self.compact and bool(done.any()):  # one wait for the device
                found = put(found, here, SearchResult(best, done, loss))
                stay = (~done).nonzero()[:, 0]
                here, best, loss, done = here[stay], best[stay], loss[stay], done[stay]
                samples = take(samples, stay)
                draws.keep(stay)
            if len(here) == 0:
                break
            size = moves.window(share_of(query, self.p_init, self.n_queries, self.rescale_schedule))
            room = (moves.image[0] - size[0], moves.image[1] - size[1])
            proposal = draws.query(query, room, moves.channels)
            tried = moves.propose(best, samples.x, samples.eps, size, proposal)
            new_loss, fooled = self._score(passes, tried, samples.goal)
            better = (fooled | (new_loss > loss)) & ~done
            best = torch.where(column(better, best), tried, best)
            loss = torch.where(better, new_loss, loss)
            queries[here] += (~done).long()
            done = done | fooled
        return put(found, here, SearchResult(best, done, loss)), queries

    def _score(self, passes: Passes, x_adv: Tensor, goal: Goal) -> tuple[Tensor, Tensor]:
        """What decides (B,), and which samples are fooled."""
        loss, logits = passes.evaluate(x_adv, goal)
        return loss, self.reached(logits, goal)

    def reached(self, logits: Tensor, goal: Goal) -> Tensor:
        """Which samples are fooled, (B,)."""
        return goal.reached(logits)


def share_of(query: int, p_init: float, n_queries: int, rescale: bool) -> float:
    """The share of pixels that query number `query` changes (section 3.2 of the paper)."""
    place = int(query / n_queries * 10000) if rescale else query
    return p_init / 2 ** bisect_left(_SHRINKS, place)


def canvas(x: Tensor) -> tuple[int, int, int]:
    """Channels, rows and columns of a batch; (B, D) and (B, C, L) have one row.

    Raises:
        ArgumentError: another number of dimensions.
    """
    if x.ndim == 2:
        return 1, 1, x.shape[1]
    if x.ndim == 3:
        return x.shape[1], 1, x.shape[2]
    if x.ndim == 4:
        return x.shape[1], x.shape[2], x.shape[3]
    expected = "a batch (B, C, H, W), (B, C, L) or (B, D)"
    raise ArgumentError(describe("x", expected, f"shape {tuple(x.shape)}"))


class SampleDraws:
    """Philox words keyed by the run and counted by (query, sample id): the same in any batch.

    Args:
        key: names the run; restarts have different ones.
        ids: int64 (n,), names of the samples.
    """

    def __init__(self, key: tuple[int | str, ...], ids: Tensor) -> None:
        self._key = torch.tensor(derive_seed(*key), device=ids.device)
        self._ids = ids
        self._table = torch.empty(0, device=ids.device)
        self._first, self._width = -1, 0

    def stripes(self, channels: int, width: int) -> Tensor:
        return self._bits(_START, channels * width).view(-1, channels, width)

    def tiles(self, count: int, channels: int) -> tuple[Tensor, Tensor]:
        bits = self._bits(_START, count * (channels + 1)).view(-1, count, channels + 1)
        return bits[..., 0] > 0, bits[..., 1:]

    def query(self, number: int, room: tuple[int, int], channels: int) -> Proposal:
        blocks = 1 + (5 + (channels + 31) // 32 - 1) // 4
        chunk = number // CHUNK
        if chunk != self._first or blocks != self._width:
            self._first, self._width = chunk, blocks
            words = self._words(chunk * CHUNK * blocks, CHUNK * blocks)
            self._table = words.view(-1, CHUNK, 4 * blocks)
        words = self._table[:, number % CHUNK]
        # a word of 32 bits times the number of places: its upper half is the place
        top = (words[:, 0:2] * (room[0] + 1)) >> 32
        left = (words[:, 2:4] * (room[1] + 1)) >> 32
        return Proposal(top, left, _signs(words[:, 5:], channels), (words[:, 4] & 1) == 1)

    def keep(self, index: Tensor) -> None:
        self._ids = self._ids[index]
        if self._first >= 0:
            self._table = self._table[index]

    def _bits(self, first: int, count: int) -> Tensor:
        return _signs(self._words(first, (count + 127) // 128), count)

    def _words(self, first: int, blocks: int) -> Tensor:
        """(n, 4 blocks) words of 32 bits."""
        counters = torch.arange(first, first + blocks, device=self._ids.device)
        low = counters.expand(len(self._ids), -1)
        drawn = philox(self._key, low, self._ids[:, None].expand_as(low))
        return torch.stack(drawn, dim=2).flatten(1)


def _signs(words: Tensor, count: int) -> Tensor:
    """(n, w) words of 32 bits -> (n, count) of -1 and 1, one of each bit."""
    places = torch.arange(32, device=words.device)
    bits = (words[:, :, None] >> places) & 1
    return (bits.flatten(1)[:, :count] * 2 - 1).to(torch.float32)
