"""Messages to the user: modules log them under their own names, and the command line shows them.

    logger = logging.getLogger(__name__)
    logger.info("encoding %d prompts", number)

INFO is for progress, WARNING for what the user may want to act on. A program that imports dpdmd as a library sees
messages as it has set up `logging`, or calls `show_messages`.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

# Chosen by --quiet and --verbose; the processes that a command starts have it as well.
LEVEL_VARIABLE = "DPDMD_MESSAGES"
QUIET, VERBOSE = "quiet", "verbose"
LEVELS = {QUIET: logging.WARNING, VERBOSE: logging.DEBUG}


def show_messages() -> None:
    """Print what dpdmd logs from INFO on, as plain lines on stdout; further calls change nothing.

    Lines do not break a progress bar. Of several processes that torchrun has started, the first alone prints.
    """
    logger = logging.getLogger("dpdmd")
    if any(isinstance(handler, _BesideProgressBars) for handler in logger.handlers):
        return
    if os.environ.get("RANK", "0") == "0":
        logger.addHandler(_BesideProgressBars())
        logger.setLevel(LEVELS.get(os.environ.get(LEVEL_VARIABLE, ""), logging.INFO))
    else:
        logger.addHandler(logging.NullHandler())  # without any, logging would print warnings itself


@contextmanager
def without_loading_bars() -> Iterator[None]:
    """Within it diffusers and transformers draw no progress bars over the parts and tensors that they load, nor tables.

    They would take a dozen lines for half a second. The bars of downloads stay. What their warnings say of a model is
    checked instead (`models.checked`).
    """
    from diffusers.utils import logging as of_diffusers
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging as of_transformers

    of_downloads = disable_progress_bars if are_progress_bars_disabled() else enable_progress_bars
    shown = [library for library in (of_diffusers, of_transformers) if library.is_progress_bar_enabled()]
    levels = {library: library.get_verbosity() for library in (of_diffusers, of_transformers)}
    for library in shown:
        library.disable_progress_bar()
    for library in levels:
        library.set_verbosity(logging.CRITICAL)
    of_downloads()  # transformers switches them together with its own
    try:
        yield
    finally:
        for library, level in levels.items():
            library.set_verbosity(level)
        for library in shown:
            library.enable_progress_bar()
        of_downloads()


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its class if it has none."""
    return next(iter(str(error).splitlines()), type(error).__name__)


class _BesideProgressBars(logging.StreamHandler):
    """Writes by tqdm, which clears its bars, writes the line and draws the bars again below it."""

    def __init__(self):
        super().__init__(stream=_BarsStream())


class _BarsStream:
    """stdout as it is when a line is written."""

    def write(self, text: str) -> None:
        tqdm.write(text, end="")

    def flush(self) -> None:
        """tqdm has done it."""
