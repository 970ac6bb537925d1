"""Whose fault it is when shards that are right in themselves do not belong to each other. Pure.

Any k shards of a pack determine all others, and with a Cauchy code each of the others depends on each of the
k. So one wrong shard among k that are taken for right makes every other one disagree; and where at least
one of the others agrees, the k are right, and those that disagree are wrong. Where all others disagree, each
of the k is suspected in turn: left out, the rest must agree about everything else. With a single
shard beyond k there is nobody to ask: then nobody is blamed. Two wrong shards at once can look like another
single one only if they were made to; what is told apart here are faults, not forgeries.
"""

from collections.abc import Mapping

from holdfast.base.checksums import Buffer
from holdfast.packs import codec
from holdfast.scheme import Scheme


def agree(scheme: Scheme, units: Mapping[int, Buffer], unit_bytes: int) -> bool:
    """Whether more than k units of one stripe (virtual ones included) belong together."""
    return not codec.strangers(scheme, units, unit_bytes)


def blame(scheme: Scheme, units: Mapping[int, Buffer], unit_bytes: int) -> frozenset[int] | None:
    """The shards whose units are wrong, of units that do not belong together; None when it can't be told."""
    basis = sorted(units)[: scheme.k]
    others = len(units) - scheme.k
    strangers = codec.strangers(scheme, units, unit_bytes)
    if len(strangers) < others:
        return frozenset(strangers)
    if others < 2:
        return None
    suspects = [
        suspect
        for suspect in basis
        if agree(scheme, {shard: data for shard, data in units.items() if shard != suspect}, unit_bytes)
    ]
    return frozenset(suspects) if len(suspects) == 1 else None
