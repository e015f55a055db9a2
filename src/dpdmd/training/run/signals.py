"""Turn Ctrl-C and SIGTERM into a request that the loop obeys between two updates."""

import signal
import threading
from types import FrameType


class StoppedBySignal(Exception):
    """Training was asked to stop and has saved a checkpoint; `exit_code` is 128 + the signal's number (130, 143)."""

    def __init__(self, signum: int, message: str):
        super().__init__(message)
        self.signum = signum
        self.exit_code = 128 + signum


class StopRequest:
    """Within the block SIGINT and SIGTERM only set `signum`; a second SIGINT interrupts at once, without saving.

    Outside of the main thread, where Python allows no handlers, the block changes nothing.
    """

    def __init__(self):
        self.signum = 0
        self._previous = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._previous[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(self, *_) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous = {}

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.signum and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.signum = signum
