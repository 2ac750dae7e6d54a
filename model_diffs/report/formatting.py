"""How numbers, sizes and times are written on the page: short, with a true minus."""

import math
from datetime import datetime

NO_VALUE = "–"


def _signed(text: str, plus: bool) -> str:
    if text.strip("-0.") == "":
        return text.lstrip("-")  # −0.00 is 0.00
    if text.startswith("-"):
        return "−" + text[1:]
    return "+" + text if plus else text


def _decimals(value: float, unit: str) -> int:
    """Decimals of about two to three significant digits, the same for numbers of like size."""
    size = abs(value)
    if unit == "steps":
        return 0 if float(value).is_integer() else 1
    if unit == "rank":
        return 1 if size < 100 else 0
    if unit in ("share", "accuracy", "change") and size < 10:
        return 2 if size >= 0.095 or size == 0 else 3
    return sum(size < least for least in (100, 10, 0.095, 0.0095))


def _written(value: float, decimals: int, unit: str) -> str:
    plus = unit == "change"
    if value and (abs(value) >= 100_000 or (unit in ("ratio", "nats") and abs(value) < 0.00095)):
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{_signed(mantissa, plus)}e{int(exponent)}".replace("-", "−")
    return _signed(f"{value:.{decimals}f}", plus)


def number(
    value: float, unit: str, low: float | None = None, high: float | None = None
) -> tuple[str, str]:
    """A number and its interval as text, the interval empty where there is none.

    `unit`: as in `Measure`. All three have the same decimals, and more of them where the interval
    is narrower than a unit of the last.
    """
    decimals = (
        0 if value == 0 and low is None and unit in ("ratio", "nats") else _decimals(value, unit)
    )
    if low is None or high is None:
        return _written(value, decimals, unit), ""
    while low != high and decimals < 4 and abs(high - low) < 10**-decimals:
        decimals += 1
    ends = (_written(end, decimals, unit) for end in (low, high))
    return _written(value, decimals, unit), " to ".join(ends)


def spread(mean: float, deviation: float, unit: str) -> str:
    """Mean ± standard deviation; the mean alone where that is none, a dash where neither is."""
    found = [number(one, unit)[0].lstrip("+") for one in (mean, deviation) if not math.isnan(one)]
    return " ± ".join(found) or NO_VALUE


def exact(value: float) -> str:
    """All digits of a table's cell."""
    return repr(float(value)) if not float(value).is_integer() else str(int(value))


def size(count: float | None) -> str:
    """Bytes in the largest unit that leaves a number above 1."""
    if count is None:
        return NO_VALUE
    power = min(4, int(math.log10(max(count, 1)) // 3))
    number = count / 1000**power
    decimals = 1 if power and number < 100 else 0
    return f"{number:.{decimals}f} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def duration(seconds: float) -> str:
    """Seconds in the largest convenient unit."""
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def day(stamp: str | None) -> str:
    """The day of an ISO time; the text itself where it is none."""
    try:
        found = datetime.fromisoformat(stamp or "")
    except ValueError:
        return stamp or ""
    return f"{found.day} {found:%B %Y}"


def count(value: float | None) -> str:
    """A whole number with thin spaces between thousands."""
    return NO_VALUE if value is None else f"{value:,.0f}".replace(",", "\u202f")
