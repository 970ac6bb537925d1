"""When the shards of each store were last read from the medium, and what is to be read next. Pure.

The ids of packs are cut into `RANGES` ranges by their first byte; for each store and range the time is kept
at which the last complete reading of that range began. So a million packs are 256 numbers a store. A store
that was away or did not answer while a range was read keeps its older time. What must hold: a time is never
younger than the oldest reading that it stands for; a time ahead of the clock (it was set back) stands for
never.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from msgspec import Struct

from holdfast.base.ids import StoreId

RANGES = 256
NEVER = 0

TOGETHER_MAX = 16
"""Ranges that are read as one where all of them are overdue, so that a few packs are read side by side also
where a range holds less than one."""


class StoreTimes(Struct, array_like=True):
    """`scrub/store/<id>`: seconds since 1970, one for each range; 0 for never."""

    format: int
    read_at: list[int]


class At(Struct, array_like=True):
    """`scrub/at`: the range that is being read, behind which pack (hex, empty at its begin), since when, and
    the stores that answered for all of it until now. `range` is `RANGES` when nothing is being read;
    `together` is how many ranges from there on are read as one."""

    format: int
    range: int
    after: str
    began: int
    covered: list[StoreId]
    together: int = 1


class Look(NamedTuple):
    """What some stores' times say. `range` was read longest ago at one of them, the first of equals;
    `oldest_s` is how long ago that was, infinite where it never was; `overdue` is how many ranges have shards
    that were not read within a pass's time, `together` how many of those lie side by side from `range` on (at
    least 1, at most `TOGETHER_MAX`)."""

    range: int
    oldest_s: float
    overdue: int
    together: int


def look(
    times: Mapping[StoreId, Sequence[int]], stores: Iterable[StoreId], now: float, pass_s: float
) -> Look:
    """Look at the times of `stores`."""
    moments = _by_range(times, stores, now)
    oldest, latest = min(moments), now - pass_s
    overdue = sum(moment < latest for moment in moments) if oldest < latest else 0
    first, together = moments.index(oldest), 1
    for moment in moments[first + 1 : first + TOGETHER_MAX]:
        if moment >= latest:
            break
        together += 1
    oldest_s = float("inf") if oldest == NEVER else max(0.0, now - oldest)
    return Look(first, oldest_s, overdue, together)


def is_due(oldest_s: float, since_last_began_s: float | None, pass_s: float) -> bool:
    """Whether to begin with another range: so that a pass is spread evenly over its time, or at once where
    something was not read for longer than that."""
    if oldest_s > pass_s:
        return True
    return since_last_began_s is None or since_last_began_s >= pass_s / RANGES


def range_keys(number: int, together: int = 1) -> tuple[bytes, bytes]:
    """Where the rows of the packs of a range, or of so many as one, begin and end."""
    start, end = b"pack/%02x" % number, number + together
    return start, b"pack/%02x" % end if end < RANGES else b"pack/g"


def _by_range(times: Mapping[StoreId, Sequence[int]], stores: Iterable[StoreId], now: float) -> list[int]:
    """For each range the oldest time at one of `stores`; `now` where none is known."""
    here = [times[store] for store in stores if store in times]
    if not here:
        return [int(now)] * RANGES
    if max(map(max, here)) > now + 1:
        here = [[NEVER if moment > now + 1 else moment for moment in read_at] for read_at in here]
    return list(map(min, *here)) if len(here) > 1 else list(here[0])
