"""Which bytes a request asks for, and which extents hold them. Pure arithmetic.

What must hold: a range that is answered lies inside the object and has at least one byte; what
`cut_extents` returns covers exactly the bytes asked for.
"""

from collections.abc import Sequence
from typing import NamedTuple

from holdfast.objects.errors import InvalidRange
from holdfast.packs.model import Extent

Range = tuple[int | None, int | None]
"""(first, last), (first, None) for the rest, (None, length) for a suffix, as in RFC 9110, 14.1.2."""


class Span(NamedTuple):
    """`length` bytes from `first`."""

    first: int
    length: int


def resolve_range(range_: Range, size: int) -> Span | None:
    """The bytes of an object of `size` that `range_` names, clipped to its end.

    None when the range is not one at all (its last byte lies before its first, or it is empty on both
    sides): RFC 9110 has such a header ignored. Raises InvalidRange when no byte of it exists.
    """
    first, last = range_
    if first is None:
        if last is None:
            return None
        if last <= 0 or size == 0:
            raise _nothing(size)
        length = min(last, size)
        return Span(size - length, length)
    if last is not None and last < first:
        return None
    if first >= size:
        raise _nothing(size)
    end = size if last is None else min(last + 1, size)
    return Span(first, end - first)


def _nothing(size: int) -> InvalidRange:
    return InvalidRange("No byte of the object lies in the range.", hint=f"It has {size} bytes.", size=size)


def cut_extents(extents: Sequence[Extent], first: int, length: int) -> tuple[list[Extent], int]:
    """The extents that hold `length` bytes from `first`, and where in the first of them they begin."""
    found: list[Extent] = []
    start = offset = 0
    for extent in extents:
        end = start + extent.length
        if extent.length and end > first and start < first + length:
            if not found:
                offset = first - start
            found.append(extent)
        start = end
    return found, offset


def within_one(extents: Sequence[Extent], first: int, length: int) -> Extent | None:
    """The part of a single extent that holds all of the bytes, or None when several are needed."""
    start = 0
    for extent in extents:
        if first < start + extent.length:
            inside = first - start
            if inside + length > extent.length:
                return None
            if length == extent.length:
                return extent
            return Extent(extent.pack, extent.offset + inside, length)
        start += extent.length
    return None
