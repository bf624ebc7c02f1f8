"""The loop over chunks of images and rows of flags; what is finished is not done again."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from roli_fast.attacks.base import Ball
from roli_fast.attacks.objective import is_right
from roli_fast.attacks.warning_signs import before_attack
from roli_fast.data import Batch, ImageDataset
from roli_fast.engine import InputGradient, SearchModel, plain
from roli_fast.errors import ArgumentError, describe
from roli_fast.evaluate.rows import Row, Seen
from roli_fast.evaluate.store import Chunk, Store
from roli_fast.losses import cross_entropy
from roli_fast.running.memory import memory_guard
from roli_fast.running.progress import progress_bar
from roli_fast.running.ranks import Ranks
from roli_fast.threat import check_images

_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Images:
    """One set of images and its rows of flags.

    Args:
        name: stands before its chunks' names; empty for the evaluation's own.
        dataset: in the order of the evaluation; labels are outputs of the model.
        rows: what is measured of each chunk, besides the clean images.
        chunk: images of a chunk.
        ball: where to look for signs of masked gradients before the attacks, and whether the model
            is expected to draw; None looks for none.
    """

    name: str
    dataset: ImageDataset
    rows: Sequence[Row]
    chunk: int
    ball: tuple[Ball, bool] | None = None

    @property
    def parts(self) -> dict[str, range]:
        """The name of each chunk and its images' places."""
        starts = range(0, len(self.dataset), self.chunk)
        ends = [min(start + self.chunk, len(self.dataset)) for start in starts]
        ranges = map(range, starts, ends)
        return {f"{self.name}{number:05d}": rows for number, rows in enumerate(ranges)}

    @property
    def plan(self) -> list[tuple[str, str]]:
        """(group, part) of every row of flags."""
        return [name for row in self.rows for name in row.names]


@dataclass
class Runner:
    """Measures sets of images, chunk by chunk.

    Args:
        model: how searches pass images through the model.
        device: where it is.
        store: where chunks are saved.
        norms: whose adversarial images are saved as well; empty for none.
        check: called now and then, a stop.
        ranks: this process among those that share the chunks.
        quiet: no progress bar.
    """

    model: SearchModel
    device: torch.device
    store: Store
    norms: tuple[str, ...] = ()
    check: Callable[[], None] = lambda: None
    ranks: Ranks = Ranks()
    quiet: bool = False

    def load(self, images: Images, name: str) -> Chunk | None:
        """What is saved of a chunk."""
        ids = images.dataset.ids[list(images.parts[name])].tolist()
        return self.store.load(name, ids, images.plan)

    def attack_dataset(self, images: Images) -> None:
        """Measure this process's share of the chunks, or go on with it.

        Raises:
            OutOfMemoryError: a pass does not fit; what was finished is saved.
        """
        parts, total = images.parts, len(images.plan)
        kept = {name: self.load(images, name) for name in parts}
        done = {name: c for name, c in kept.items() if c is not None and len(c.found) == total}
        mine = [name for name in parts if name not in done][self.ranks.rank :: self.ranks.world]
        title = f"evaluate {images.name}".strip(" -")
        bar = progress_bar(
            title if self.ranks.world == 1 else f"{title}, process 1/{self.ranks.world}",
            total=sum(len(parts[name]) for name in mine),
            quiet=self.quiet or not self.ranks.first or not mine,
            smoothing=0.0,  # rows differ, chunks do not: the mean is the better guess
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}",
        )
        with bar:
            for name in mine:
                self.check()
                rows = parts[name]
                x, y, ids = images.dataset.batch(torch.arange(rows.start, rows.stop))
                x = check_images(x, (0.0, 1.0))
                batch = Batch(*(tensor.to(self.device) for tensor in (x, y, ids)))
                size = self.model.engine.batch_size or len(rows)
                with memory_guard("--batch_size", size, self.device):
                    chunk = kept[name] or self._begin(images, name, batch)
                    for made in self._measure(images, chunk, batch):
                        bar.update(made * len(rows) / max(1, total))
                done[name] = chunk
                robust = sum(int(one.alive(None).sum()) for one in done.values())
                count = sum(len(one.ids) for one in done.values())
                bar.set_postfix_str(f"robust {100 * robust / count:.1f} % of {count}")

    def _measure(self, images: Images, chunk: Chunk, batch: Batch) -> Iterator[int]:
        """Bring one chunk to its end, measurement by measurement; gives how many rows each has."""
        saved = self.store.images(chunk, batch.x, self.norms) if self.norms else None
        seen = Seen(chunk, images.parts[chunk.name], batch, saved)
        done = 0
        for row in images.rows:
            done += len(row.names)
            if done > len(chunk.found):
                del chunk.found[done - len(row.names) :]
                chunk.found += row.measure(self.model, seen)
                self.store.save(chunk, saved)
                self.check()
            yield len(row.names)

    def _begin(self, images: Images, name: str, batch: Batch) -> Chunk:
        """One forward on the images as they are, and a look for signs in the first chunk."""
        x, y, rows = batch.x, batch.y, images.parts[name]
        signs: dict[str, str] = {}
        with InputGradient(plain(self.model)) as gradient, torch.no_grad():
            logits = gradient.evaluate(x, y, cross_entropy)[1]
            if broken := logits.isnan().any(1).nonzero()[:, 0].tolist():
                names = ", ".join(images.dataset.name(rows[place]) for place in broken[:5])
                got = f"NaN for {len(broken)} of {len(logits)}: {names}"
                fix = "Look for a division by zero, or an overflow in half precision."
                raise ArgumentError(
                    describe("model", "numbers as logits of clean images", got, fix)
                )
            right = is_right(logits, y)
            if images.ball and rows.start == 0:
                ball, draws = images.ball
                found = before_attack(gradient, x, y, right, ball, draws=draws)
                signs = {sign.kind: sign.text for sign in found}
            chunk = Chunk(name, batch.ids.tolist(), right.cpu(), gradient.cost, signs)
        self.store.save(chunk)
        return chunk

    def collect(self, images: Images) -> list[Chunk]:
        """Every chunk, once all processes are done."""
        done: list[Chunk] = []
        for name in images.parts:
            while (chunk := self.load(images, name)) is None or len(chunk.found) < len(images.plan):
                self.check()
                time.sleep(_POLL_SECONDS)
            done.append(chunk)
        return done
