"""Errors of packs that callers tell apart."""

from holdfast.base.errors import Busy, Damaged, Unavailable


class PackGone(Busy):
    """The pack is not in the index any more: the version has moved or is gone. Look it up again."""


class BelowFloor(Unavailable):
    """Fewer stores took the write than redundancy needs. Nothing was acknowledged."""


class TooManyShardsLost(Damaged):
    """Fewer than k shards of a pack are readable and right."""


class TooFewShardsAnswer(Unavailable):
    """Fewer than k shards of a pack can be read now; enough may be there once their stores answer."""
