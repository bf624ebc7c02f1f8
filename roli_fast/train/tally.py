"""What the updates of an epoch reported, brought over without making anybody wait."""

import torch
from torch import Tensor


class Tally:
    """Rows of numbers, one an update, from the device to the host.

    A reader on a GPU's host gets rows one block late: the copy of a block starts when it is full,
    and it is read when the next one is, many updates later, so neither the device nor the updates
    that are queued for it pause. How late is a matter of counting, never of timing: several
    processes of a run read the same rows at the same update.

    Args:
        device: where the rows are made.
        block: rows that are copied at once.
    """

    def __init__(self, device: torch.device, block: int = 16) -> None:
        self._block = block
        self._late = device.type == "cuda"
        self._rows: list[Tensor] = []
        self._sent: list[tuple[Tensor, torch.cuda.Event | None]] = []

    def __len__(self) -> int:
        """How many rows were added and not taken."""
        return len(self._rows) + sum(len(rows) for rows, _ in self._sent)

    @property
    def due(self) -> bool:
        """Whether a block is full: `take` what is there."""
        return len(self._rows) >= self._block

    def add(self, row: Tensor) -> None:
        """Note the row (k,) of an update, on the device."""
        self._rows.append(row)

    def take(self, *, last: bool) -> Tensor:
        """Rows (n, k) on the host, oldest first.

        Args:
            last: all of them, which waits for the device; else what can be read without.
        """
        if self._rows:
            self._sent.append(_copied(torch.stack(self._rows)))
            self._rows = []
        kept = self._late and not last
        ready, self._sent = (self._sent[:-1], self._sent[-1:]) if kept else (self._sent, [])
        for _rows, event in ready:
            if event is not None:
                event.synchronize()
        return torch.cat([rows for rows, _ in ready]) if ready else torch.empty(0, 0)


def _copied(rows: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """The rows on the host, and what tells that they have arrived there."""
    if not rows.is_cuda:
        return rows.cpu(), None
    host = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True)
    host.copy_(rows, non_blocking=True)
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(rows.device))
    return host, event
