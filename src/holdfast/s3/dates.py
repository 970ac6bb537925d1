"""The three ways that S3 writes time, from and to milliseconds since 1970 UTC. Pure."""

import calendar
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import lru_cache

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


@lru_cache(maxsize=512)
def http_date(seconds: int) -> str:
    """`Sun, 06 Nov 1994 08:49:37 GMT`, whatever the locale."""
    t = _EPOCH + timedelta(seconds=seconds)
    return (
        f"{_DAYS[t.weekday()]}, {t.day:02} {_MONTHS[t.month - 1]} {t.year:04} "
        f"{t.hour:02}:{t.minute:02}:{t.second:02} GMT"
    )


def iso_date(milliseconds: int) -> str:
    """`2009-10-12T17:50:30.000Z`, as XML bodies say it."""
    t = _EPOCH + timedelta(milliseconds=milliseconds)
    return f"{t:%Y-%m-%dT%H:%M:%S}.{milliseconds % 1000:03}Z"


def amz_date(seconds: int) -> str:
    """`20130524T000000Z`, as SigV4 says it."""
    return f"{_EPOCH + timedelta(seconds=seconds):%Y%m%dT%H%M%SZ}"


@lru_cache(maxsize=512)
def parse_amz_date(text: str) -> int | None:
    """Seconds of `20130524T000000Z`, or None for anything else."""
    if len(text) != 16 or not text.isascii() or text[8] != "T" or text[15] != "Z":
        return None
    digits = text[:8] + text[9:15]
    if not digits.isdigit():
        return None
    year, month, day = int(text[:4]), int(text[4:6]), int(text[6:8])
    hour, minute, second = int(text[9:11]), int(text[11:13]), int(text[13:15])
    if not (year >= 1970 and 1 <= month <= 12 and hour < 24 and minute < 60 and second < 60):
        return None
    if not 1 <= day <= calendar.monthrange(year, month)[1]:
        return None
    return calendar.timegm((year, month, day, hour, minute, second))


def parse_http_date(text: str) -> int | None:
    """Milliseconds of an HTTP date (RFC 9110, 5.6.7, all three forms) or an ISO 8601 one; else None."""
    parsers: tuple[Callable[[str], datetime], ...] = (parsedate_to_datetime, datetime.fromisoformat)
    for parser in parsers:
        try:
            moment = parser(text)
        except (ValueError, TypeError, IndexError, OverflowError):
            continue
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return int((moment - _EPOCH) // timedelta(milliseconds=1))
    return None
