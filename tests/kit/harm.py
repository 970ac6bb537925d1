"""What can happen to the bytes of a file behind everybody's back, as one table for every test of it."""

from enum import Enum


class Harm(Enum):
    """One way in which a stretch of bytes, or a whole file, goes wrong without a word."""

    FLIP = "flip"
    ZERO = "zero"
    TRUNCATE = "truncate"
    EXTEND = "extend"
    SWAP = "swap"
    REMOVE = "remove"


def harmed(content: bytes, harm: Harm, start: int, end: int, other: bytes | None = None) -> bytes | None:
    """`content` after `harm` to its bytes `start` to `end`; None when the file is gone.

    A truncated file ends at `start`; an extended one goes on after its end; a swapped one holds `other`:
    what another file, another store or an earlier day had.
    """
    assert 0 <= start < end <= len(content) or harm in (Harm.EXTEND, Harm.REMOVE, Harm.SWAP)
    match harm:
        case Harm.FLIP:
            at = (start + end) // 2
            return content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :]
        case Harm.ZERO:
            return content[:start] + bytes(end - start) + content[end:]
        case Harm.TRUNCATE:
            return content[:start]
        case Harm.EXTEND:
            return content + b"\xa5" * max(1, end - start)
        case Harm.SWAP:
            return other
        case Harm.REMOVE:
            return None
