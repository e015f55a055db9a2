"""Numbers and lists as words."""

import math
from collections.abc import Callable, Iterable


def percent(value: float) -> str:
    """0.923 as "92 %"."""
    return f"{100 * value:.0f} %"


def duration(seconds: float) -> str:
    """Seconds as "7.5 s", "3 min 20 s" or "2 h 5 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def signed(value: float, digits: int) -> str:
    """A difference as "+0.5", "−0.5" or "0.0"."""
    text = f"{value:+.{digits}f}".replace("-", "−")
    return text[1:] if not text.strip("+−0.") else text


def times(speedup: float) -> str:
    """The share of the time that a speed-up leaves: 15.2 as "1/15", and below 1.75 in per cent, 1.25 as "80 %"."""
    return f"1/{round(speedup)}" if speedup >= 1.75 else percent(1 / max(speedup, 1e-9))


def joined(parts: list[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def written(value: float, style: str) -> str:
    """One value as text, in one of the styles of metrics."""
    return writer(style, [value])(value)


def writer(style: str, row: Iterable[float]) -> Callable[[float], str]:
    """How the values of one row are written: in one unit, with as many digits for all of them.

    style: of a metric. row: all values that will be written, bounds of intervals included.
    """
    row = [abs(value) for value in row]
    largest, are_whole = max(row, default=0.0), all(value == round(value) for value in row)
    scale, digits, unit = scale_of(style, largest)
    if are_whole and style in ("count", "tenths"):
        digits = 0
    if style == "duration":
        return duration
    return lambda value: f"{value / scale:,.{digits}f}{unit}"


def scale_of(style: str, largest: float) -> tuple[float, int, str]:
    """What a style divides by, its decimals and its unit, for values up to `largest`."""
    three = max(0, 2 - math.floor(math.log10(largest))) if largest > 0 else 2  # digits in all of the largest
    scales: dict[str, tuple[float, int, str]] = {
        "count": (1, 1, ""),
        "percent": (0.01, 0, " %"),
        "percent1": (0.01, 1, " %"),
        "decimal": (1, 2 if largest < 10 else 1, ""),
        "tenths": (1, 1, ""),
        "times": (1, 1 if largest < 10 else 0, " ×"),
        "number": (1, min(three, 6), ""),
        "duration": (1, 0, ""),
    }
    if style == "seconds":
        return (0.001, max(0, three - 3), " ms") if largest < 1 else (1, min(three, 2), " s")
    if style == "parameters":
        return (1e6, 1, " M") if largest >= 1e5 else (1, 0, "")
    if style == "bytes":
        return (2**30, 1, " GiB") if largest >= 2**30 else (2**20, 0, " MiB")
    return scales[style]
