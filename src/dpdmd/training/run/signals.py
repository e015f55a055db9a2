"""Turn signals that ask a process to end into a request that the loop obeys between two updates."""

import signal
import threading
from types import FrameType

# Ctrl-C, `kill`, a closed terminal, and what clusters send before they take a machine away.
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class StopRequest:
    """Within the block the signals STOPPING only set `signum`; a second SIGINT interrupts at once, without saving.

    A signal that the process was started to ignore, as SIGHUP by `nohup`, stays ignored. Outside of the main thread,
    where Python allows no handlers, the block changes nothing.
    """

    def __init__(self):
        self.signum = 0
        self._previous = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for signum in STOPPING:
                if signal.getsignal(signum) is not signal.SIG_IGN:
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
