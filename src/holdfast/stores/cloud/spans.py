"""Which stretches of a blob to ask for, so that all ranges are had.

A request has a price and a round trip, bytes nearly none: ranges that lie close are read as one stretch.
What must hold: every range lies wholly in the stretch that is named for it, and a stretch grows no longer
than `STRETCH_BYTES_MAX` by joining. Pure.
"""

from collections.abc import Sequence

from holdfast.stores.port import Range

GAP_BYTES_MAX = 64 << 10
STRETCH_BYTES_MAX = 8 << 20


def stretches(ranges: Sequence[Range]) -> tuple[list[Range], list[int]]:
    """The stretches, in order of their offsets, and for each range the number of its own."""
    found: list[Range] = []
    owners = [0] * len(ranges)
    for number in sorted(range(len(ranges)), key=lambda each: ranges[each]):
        offset, length = ranges[number]
        assert offset >= 0
        assert length >= 1
        if found:
            start, size = found[-1]
            end = max(start + size, offset + length)
            if offset + length <= start + size or (
                offset <= start + size + GAP_BYTES_MAX and end - start <= STRETCH_BYTES_MAX
            ):
                found[-1] = Range(start, end - start)
                owners[number] = len(found) - 1
                continue
        found.append(Range(offset, length))
        owners[number] = len(found) - 1
    return found, owners
