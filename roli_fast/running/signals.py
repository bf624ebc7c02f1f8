"""SIGINT and SIGTERM end a run after the step in hand, not in the middle of it."""

import logging
import signal
import threading
from types import FrameType, TracebackType

from roli_fast.errors import InterruptedRunError

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """Notes the first signal; `check` raises at a safe place. A second SIGINT stops at once.

    Outside the main thread no handler can be set; there it never fires.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous = {}
        # A signal that reached the decoding workers too has ended them, and torch says so anywhere,
        # perhaps in the middle of an update: nothing may be saved after that.
        if self.signal and isinstance(error, RuntimeError) and "DataLoader worker" in str(error):
            text = f"stopped by {self.signal.name}, and the decoding workers with it: what came "
            raise InterruptedRunError(text + "after the last save is repeated", self.signal)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)
        logger.warning("%s: stopping after this step; Ctrl-C stops at once.", self.signal.name)

    def check(self) -> None:
        """Raise `InterruptedRunError` if a signal came."""
        if self.signal is not None:
            raise InterruptedRunError(f"stopped by {self.signal.name}", self.signal)
