"""Progress: a bar on a terminal, a line now and then elsewhere."""

import re
import sys

import pytest

from dpdmd.store import progress
from dpdmd.store.progress import MOST_LINES, SECONDS, progress_bar, tracked

LINE = re.compile(r"(.+): (\d+) of (\d+) \((\d+)%\), (\S+) (\S+), (\S+) left(.*)")


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still unless it is told: clock[0] += seconds."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def lines(capsys) -> list[tuple[str, ...]]:
    return [match.groups() for line in capsys.readouterr().err.splitlines() if (match := LINE.fullmatch(line))]


def test_a_line_says_how_far_how_fast_how_long_and_the_values(clock, capsys):
    with progress_bar(40, "my_student", unit="update", initial=10) as bar:
        clock[0] += 5
        bar.update(values={"dmd": "0.21", "rate": "1e-05"})
    # One update in 5 s, 29 left: 2 min 25 s.
    (line,) = lines(capsys)
    assert line == ("my_student", "11", "40", "28", "5.0", "s/update", "02:25", ", dmd 0.21, rate 1e-05")


def test_lines_are_few_and_the_last_is_never_left_out(clock, capsys):
    with progress_bar(6000, "x", unit="update") as bar:
        for _ in range(6000):
            clock[0] += 1
            bar.update()
    found = [int(line[1]) for line in lines(capsys)]
    assert found[0] == 1 and found[-1] == 6000 and 0.9 * MOST_LINES <= len(found) <= MOST_LINES + 3
    for _ in tracked(range(25), "y", 25, unit="image"):
        clock[0] += 1
    assert [int(line[1]) for line in lines(capsys)] == [1, 1 + SECONDS, 1 + 2 * SECONDS, 25]


def test_work_that_stops_early_says_how_far_it_came(clock, capsys):
    with pytest.raises(KeyboardInterrupt), progress_bar(9, "x", unit="update") as bar:
        bar.update()
        bar.update()
        raise KeyboardInterrupt
    assert [line[1] for line in lines(capsys)] == ["1", "2"]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_nothing_is_shown_where_it_is_switched_off(is_terminal, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    list(tracked(range(3), "x", 3, unit="image", shown=False))
    monkeypatch.setenv("TQDM_DISABLE", "1")
    list(tracked(range(3), "x", 3, unit="image"))
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_one_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress_bar(2, "my_student", unit="update") as bar:
        bar.update(values={"dmd": "0.21"})
        bar.update(values={"dmd": "0.20"})
    err = capsys.readouterr().err
    assert "my_student: 100%" in err and "dmd=0.20" in err and err.count("\n") == 1
