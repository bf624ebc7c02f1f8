"""The progress bar of an evaluation."""

import contextlib
from collections.abc import Iterator
from typing import Any

from roli_fast.evaluate.state import Chunk
from roli_fast.running.progress import progress_bar
from roli_fast.running.ranks import Ranks
from roli_fast.running.signals import Interrupt


class Progress:
    """A bar over this process's share, with the robust accuracy so far."""

    def __init__(
        self,
        parts: list[range],
        searches: list[Any],
        ranks: Ranks,
        interrupt: Interrupt,
        quiet: bool,
    ) -> None:
        self._parts, self._count = parts, len(searches)
        self._ranks, self._interrupt, self._quiet = ranks, interrupt, quiet
        self._finished: dict[int, Chunk] = {}
        self._bar: Any = None

    @contextlib.contextmanager
    def begin(self, kept: dict[int, Chunk | None], mine: list[int]) -> Iterator[None]:
        """Within: the bar is shown."""
        for number, chunk in kept.items():
            if chunk is not None and len(chunk.found) == self._count:
                self._finished[number] = chunk
        saved = sum(len(c.found) * len(c.ids) for n in mine if (c := kept[n]))
        world = self._ranks.world
        title = "evaluate" if world == 1 else f"evaluate, process {self._ranks.rank + 1}/{world}"
        self._bar = progress_bar(
            title,
            total=sum(len(self._parts[number]) for number in mine),
            initial=saved / max(1, self._count),
            quiet=self._quiet or not self._ranks.first,
            smoothing=0.0,  # searches differ, chunks do not: the mean is the better guess
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}",
        )
        try:
            yield
        finally:
            self._bar.close()

    def after_search(self, chunk: Chunk) -> None:
        """One more search is done on a chunk."""
        if len(chunk.found) == self._count:
            self._finished[chunk.number] = chunk
        shown = {**self._finished, chunk.number: chunk}.values()
        images = sum(len(c.ids) for c in shown)
        robust = sum(int(c.alive(None).sum()) for c in shown)
        self._bar.set_postfix_str(
            f"robust {100 * robust / images:.1f} % of {images}", refresh=False
        )
        self._bar.update(len(chunk.ids) / self._count)
        self._interrupt.check()
