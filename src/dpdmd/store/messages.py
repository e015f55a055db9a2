"""Messages to the user: modules log them under their own names, and the command line shows them.

    logger = logging.getLogger(__name__)
    logger.info("encoding %d prompts", number)

INFO is for progress, WARNING for what the user may want to act on. A program that imports dpdmd as a library sees
messages as it has set up `logging`, or calls `show_messages`.
"""

import logging
import os

from tqdm import tqdm


def show_messages() -> None:
    """Print what dpdmd logs from INFO on, as plain lines on stdout; further calls change nothing.

    Lines do not break a progress bar. Of several processes that torchrun has started, the first alone prints.
    """
    logger = logging.getLogger("dpdmd")
    if any(isinstance(handler, _BesideProgressBars) for handler in logger.handlers):
        return
    if os.environ.get("RANK", "0") == "0":
        logger.addHandler(_BesideProgressBars())
        logger.setLevel(logging.INFO)
    else:
        logger.addHandler(logging.NullHandler())  # without any, logging would print warnings itself


class _BesideProgressBars(logging.Handler):
    """Writes by tqdm, which clears its bars, writes the line and draws the bars again below it."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(self.format(record))
        except Exception:
            self.handleError(record)
