"""stdout and stderr that outlast what they are connected to, and show what a terminal can show."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from typing import Any

CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


@contextmanager
def lasting_streams() -> Iterator[None]:
    """Within it a command goes on when nobody reads its output any more, as after `| head` or a closed terminal.

    Characters that a terminal cannot encode are shown as escapes, and so are control characters on stdout: a name of a
    file or a prompt may hold them.
    """
    _open_standard_files()
    before = sys.stdout, sys.stderr
    for stream in before:
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.stdout, sys.stderr = _Lasting(sys.stdout, plain=True), _Lasting(sys.stderr)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before


def printable(text: str) -> str:
    """Text with its control characters, but line ends and tabs, as escapes."""
    return CONTROL.sub(lambda match: repr(match[0])[1:-1], text)


class _Lasting:
    """A text stream. What cannot be written is lost, and from then on everything."""

    def __init__(self, stream: Any, *, plain: bool = False):
        self._stream, self._plain = stream, plain

    def write(self, text: str) -> int:
        try:
            self._stream.write(printable(text) if self._plain else text)
        except OSError:
            self._give_up()
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._give_up()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _give_up(self) -> None:
        """Write to nowhere from now on: what is buffered already would fail again, at the latest at the exit."""
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


def _open_standard_files() -> None:
    """Open stdin, stdout and stderr where they are closed, so that no other file gets their numbers."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # which takes the lowest free number
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # it stays open
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
