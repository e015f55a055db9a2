"""Progress of long work: a bar on a terminal, now and then a plain line in a file or a pipe.

with progress_bar(total=300, what="my_student", unit="update") as bar:
    bar.update(values={"dmd": "0.21"})
for image in tracked(images, "sampling", len(images), unit="image"):
    ...
"""

import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Protocol, TypeVar

from tqdm import tqdm

from dpdmd.store.messages import LEVEL_VARIABLE, QUIET

T = TypeVar("T")
SECONDS = 10.0  # at least, between two lines
MOST_LINES = 100  # of long work
BAR = "{l_bar}{bar:12}{r_bar}"  # narrow, so that the values beside it can be read
EMPTY: Mapping[str, str] = MappingProxyType({})


class Progress(Protocol):
    """What `progress_bar` returns, entered."""

    def update(self, number: int = 1, values: Mapping[str, str] = EMPTY) -> None:
        """So much more is done; values are shown beside it."""
        ...


def progress_bar(total: int, what: str, *, unit: str, initial: int = 0, shown: bool = True) -> "_Bar | _Lines":
    """The progress of `total` units of work, of which `initial` are done; a context. It goes to stderr.

    The variable TQDM_DISABLE and the option --quiet switch it off.
    """
    kind = _Bar if sys.stderr.isatty() else _Lines
    is_quiet = os.environ.get("TQDM_DISABLE") or os.environ.get(LEVEL_VARIABLE) == QUIET
    return kind(total, what, unit, initial, shown and not is_quiet)


def tracked(items: Iterable[T], what: str, total: int, *, unit: str, shown: bool = True) -> Iterator[T]:
    """The items, with progress."""
    with progress_bar(total, what, unit=unit, shown=shown) as bar:
        for item in items:
            yield item
            bar.update()


class _Bar:
    """tqdm's bar."""

    def __init__(self, total: int, what: str, unit: str, initial: int, shown: bool):
        self._bar = tqdm(
            total=total,
            desc=what,
            unit=f" {unit}s",
            initial=initial,
            disable=not shown,
            dynamic_ncols=True,
            bar_format=BAR,
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_) -> None:
        self._bar.close()

    def update(self, number: int = 1, values: Mapping[str, str] = EMPTY) -> None:
        if values:
            self._bar.set_postfix(dict(values), refresh=False)
        self._bar.update(number)


class _Lines:
    """A line for the first unit, for the last, and in between as often as SECONDS and MOST_LINES allow."""

    def __init__(self, total: int, what: str, unit: str, initial: int, shown: bool):
        self._total, self._what, self._unit, self._initial = total, what, unit, initial
        self._done = self._written = initial
        self._values: dict[str, str] = {}
        self._shown = shown

    def __enter__(self) -> Progress:
        self._started = time.monotonic()
        self._next = 0.0
        return self

    def __exit__(self, *_) -> None:
        if self._done > self._written:
            self._write()

    def update(self, number: int = 1, values: Mapping[str, str] = EMPTY) -> None:
        self._done += number
        self._values = dict(values)
        if self._done >= self._total or time.monotonic() >= self._next:
            self._write()

    def _write(self) -> None:
        now = time.monotonic()
        elapsed, self._written = now - self._started, self._done
        per_unit = elapsed / (self._done - self._initial)
        left = per_unit * (self._total - self._done)
        self._next = now + max(SECONDS, (elapsed + left) / MOST_LINES)
        if not self._shown:
            return
        speed = f"{per_unit:.1f} s/{self._unit}" if per_unit > 1 else f"{1 / max(per_unit, 1e-9):.3g} {self._unit}s/s"
        values = "".join(f", {name} {value}" for name, value in self._values.items())
        print(
            f"{self._what}: {self._done} of {self._total} ({self._done / self._total:.0%}), {speed}, "
            f"{tqdm.format_interval(left)} left{values}",
            file=sys.stderr,
            flush=True,
        )
