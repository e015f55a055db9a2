"""What the library says while it works: logging, printed so that progress bars stay whole."""

import logging
import os

from tqdm import tqdm


class _ThroughBars(logging.Handler):
    """Messages as plain lines on stdout, by the main process alone."""

    def emit(self, record: logging.LogRecord) -> None:
        if os.environ.get("RANK", "0") == "0":
            tqdm.write(self.format(record))


def show_messages() -> None:
    """Print the library's messages from now on; calling it again changes nothing."""
    logger = logging.getLogger("dpdmd")
    if not any(isinstance(handler, _ThroughBars) for handler in logger.handlers):
        logger.addHandler(_ThroughBars())
        logger.setLevel(logging.INFO)
        logger.propagate = False
