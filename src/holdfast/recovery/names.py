"""Names of the journal's pieces and of snapshots, and what can be told from names alone. Pure.

    index-<lineage: 4 hex>-<incarnation: 32 hex>-j<before: 12 hex>-<after: 12 hex>-<level><nonce: 3 hex>
    index-<lineage>-<incarnation>-s<from: 12 hex>-<nonce: 6 hex>-<page: 8 hex, or "head">

The lineage counts how often the index was made anew; the incarnation tells indexes apart. A piece holds the
changes with before < revision <= after. What must hold: whatever a crash left behind, names lead from a
snapshot through pieces without a gap, or it is said where the gap is; and nothing is removed that the two
newest whole snapshots, or the journal behind the older of them, still need.
"""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

PREFIX = "index-"
REVISION_MAX = (1 << 48) - 1
LEVEL_MAX = 15
SNAPSHOTS_KEPT = 2

_LINEAGE = r"index-([0-9a-f]{4})-([0-9a-f]{32})"
_PIECE = re.compile(_LINEAGE + r"-j([0-9a-f]{12})-([0-9a-f]{12})-([0-9a-f])([0-9a-f]{3})\Z")
_SNAPSHOT = re.compile(_LINEAGE + r"-s([0-9a-f]{12})-([0-9a-f]{6})-([0-9a-f]{8}|head)\Z")


class Lineage(NamedTuple):
    """Which index. Ordered by how often it was made anew."""

    number: int
    incarnation: str

    @property
    def prefix(self) -> str:
        """What all names of this index begin with."""
        return f"{PREFIX}{self.number:04x}-{self.incarnation}-"


class PieceName(NamedTuple):
    """A piece of the journal. `level` is how often pieces were put together to make it."""

    lineage: Lineage
    before: int
    after: int
    level: int
    nonce: str

    def __str__(self) -> str:
        return f"{self.lineage.prefix}j{self.before:012x}-{self.after:012x}-{self.level:x}{self.nonce}"


class SnapshotName(NamedTuple):
    """A snapshot: everything it consists of begins with `prefix`."""

    lineage: Lineage
    since: int
    nonce: str

    @property
    def prefix(self) -> str:
        """What the names of its pages and of its head begin with."""
        return f"{self.lineage.prefix}s{self.since:012x}-{self.nonce}-"

    @property
    def head(self) -> str:
        """The name of its head, which is written last."""
        return f"{self.prefix}head"

    def page(self, number: int) -> str:
        """The name of a page."""
        return f"{self.prefix}{number:08x}"


class Kept(NamedTuple):
    """What names tell of one index. `snapshots` have a head, and come newest first; `pages` are all names
    that belong to snapshots, with or without one."""

    pieces: tuple[PieceName, ...]
    snapshots: tuple[SnapshotName, ...]
    pages: tuple[tuple[SnapshotName, str], ...]


def parse_piece(name: str) -> PieceName | None:
    """The other way; None for other names."""
    match = _PIECE.match(name)
    if match is None:
        return None
    number, incarnation, before, after, level, nonce = match.groups()
    piece = PieceName(
        Lineage(int(number, 16), incarnation), int(before, 16), int(after, 16), int(level, 16), nonce
    )
    return piece if piece.before < piece.after else None


def parse_snapshot(name: str) -> tuple[SnapshotName, bool] | None:
    """The snapshot that a name belongs to, and whether it is its head; None for other names."""
    match = _SNAPSHOT.match(name)
    if match is None:
        return None
    number, incarnation, since, nonce, page = match.groups()
    return SnapshotName(Lineage(int(number, 16), incarnation), int(since, 16), nonce), page == "head"


def lineage_of(name: str) -> Lineage | None:
    """Whose a name is; None for names that are not ours."""
    if (piece := parse_piece(name)) is not None:
        return piece.lineage
    if (snapshot := parse_snapshot(name)) is not None:
        return snapshot[0].lineage
    return None


def kept_of(names: Iterable[str], lineage: Lineage) -> Kept:
    """What there is of one index."""
    pieces: list[PieceName] = []
    heads: list[SnapshotName] = []
    pages: list[tuple[SnapshotName, str]] = []
    for name in names:
        if (piece := parse_piece(name)) is not None:
            if piece.lineage == lineage:
                pieces.append(piece)
        elif (parsed := parse_snapshot(name)) is not None and parsed[0].lineage == lineage:
            pages.append((parsed[0], name))
            if parsed[1]:
                heads.append(parsed[0])
    return Kept(tuple(sorted(pieces)), tuple(sorted(heads, reverse=True)), tuple(pages))


def lineages_of(names: Iterable[str]) -> list[Lineage]:
    """All indexes that left something, the newest first."""
    return sorted({found for name in names if (found := lineage_of(name)) is not None}, reverse=True)


def path_from(pieces: Sequence[PieceName], revision: int) -> list[PieceName]:
    """Pieces that lead from `revision` on without a gap, as far as there are any: of those that begin
    where the last one ended, or before it, the one that reaches furthest."""
    path: list[PieceName] = []
    at = revision
    rest = sorted(pieces)
    while True:
        fitting = [piece for piece in rest if piece.before <= at < piece.after]
        if not fitting:
            return path
        # The fewest reads; of equals the one that begins where the last one ended.
        best = max(fitting, key=lambda piece: (piece.after, piece.before, piece.level, piece.nonce))
        path.append(best)
        at = best.after
        rest = [piece for piece in rest if piece.after > at]


def superfluous(names: Iterable[str], lineage: Lineage, whole: Iterable[SnapshotName]) -> list[str]:
    """Names that nothing needs any more. `whole` are the snapshots that were read back and found right, or
    were followed by such a one: the newest two of them stay, with all pieces that reach beyond the
    older one's beginning. As long as there are not two, nothing goes.

    What an older index left goes with the same rule; what a newer one left is never touched.
    """
    names = list(names)
    newest = sorted({one for one in whole if one.lineage == lineage}, reverse=True)[:SNAPSHOTS_KEPT]
    if len(newest) < SNAPSHOTS_KEPT:
        return []
    since = newest[-1].since
    gone: list[str] = []
    for name in names:
        if (piece := parse_piece(name)) is not None:
            if piece.lineage.number < lineage.number or (piece.lineage == lineage and piece.after <= since):
                gone.append(name)
        elif (parsed := parse_snapshot(name)) is not None:
            snapshot = parsed[0]
            old = snapshot.lineage == lineage and snapshot < newest[0] and snapshot not in newest
            if snapshot.lineage.number < lineage.number or old:
                gone.append(name)
    return gone


def is_needed(name: str, newest: SnapshotName | None) -> bool:
    """Whether recovery from the newest whole snapshot (None: from the beginning) reads a name. What it does
    not read is there for the case that this one cannot be read."""
    if (piece := parse_piece(name)) is not None:
        return newest is None or piece.after > newest.since
    parsed = parse_snapshot(name)
    return parsed is not None and parsed[0] == newest


def instead_of(piece: PieceName, names: Iterable[str]) -> list[PieceName]:
    """Other pieces of the same index that tell together what this one tells; none when there is a gap. One
    that was put together leaves parts behind on stores that were away."""
    others = [one for one in kept_of(names, piece.lineage).pieces if one != piece]
    found: list[PieceName] = []
    for one in path_from(others, piece.before):
        found.append(one)
        if one.after >= piece.after:
            return found
    return []


def to_merge(pieces: Sequence[PieceName], run: int, level_max: int) -> list[PieceName]:
    """The oldest `run` adjacent pieces of one level that could be put together; empty when there are none."""
    found: list[PieceName] = []
    for piece in sorted(pieces):
        fits = found and piece.before == found[-1].after and piece.level == found[-1].level
        found = [*found, piece] if fits else [piece]
        if piece.level >= level_max:
            found = []
        if len(found) == run:
            return found
    return []
