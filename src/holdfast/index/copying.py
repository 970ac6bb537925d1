"""Copying an index from one engine to another, so that at every moment one of the two is the truth.

    freeze   nobody commits into the source any more; their writes wait
    fill     the target is made anew, under an incarnation of its own, and cannot be opened
    prove    what can be read from the target is what was read from the source: rows and digest
    move     one commit into the source: from here on the target is the truth, and whoever follows the source
             is fenced
    finish   the target can be opened

What must hold: until `move` the source is the truth, and ends being frozen by itself when the copying process
dies; after it the target is, and the same command finishes it, from the rows of the source if need be. Where
anything else is found than these steps leave behind, nothing is touched.
"""

from collections.abc import AsyncIterator, Callable
from enum import Enum
from hashlib import blake2b
from typing import Protocol

from msgspec import Struct

from holdfast.base.errors import Damaged, InvalidInput, Unavailable
from holdfast.index.port import KEY_BYTES_MAX, Row, lease_row

MOVED_ROW = b"moved"
"""In an embedded index that was moved: msgpack of `Moved`."""

FIRST = b"\x00"
END = b"\xff" * (KEY_BYTES_MAX + 1)
"""Beyond every key."""

PAGE_ROWS = 256


class Kind(Enum):
    """What is found where an index may be."""

    EMPTY = "empty"
    FILLING = "filling"
    OPEN = "open"
    MOVED = "moved"


class Standing(Struct, frozen=True):
    """`incarnation` is its own; `other` that of the source while it is filled, and of the target once it was
    moved; `where` is the target's name then."""

    kind: Kind
    incarnation: str = ""
    other: str = ""
    where: str = ""


class Moved(Struct, frozen=True, array_like=True):
    """Where an index went."""

    incarnation: str
    where: str


class Step(Enum):
    """What was done last."""

    FROZEN = "frozen"
    FILLED = "filled"
    PROVEN = "proven"
    MOVED = "moved"
    FINISHED = "finished"


class Sum(Struct, frozen=True):
    """All rows of an index, in a few bytes."""

    rows: int
    bytes: int
    digest: str


class Copied(Struct, frozen=True, kw_only=True):
    """What came of it. `again`: the target was the truth already; `sum` is None when nothing was left."""

    source: str
    target: str
    incarnation_before: str
    incarnation: str
    sum: Sum | None
    again: bool = False


class Source(Protocol):
    """Where rows come from."""

    name: str

    async def standing(self) -> Standing:
        """How it is."""
        ...

    async def freeze(self) -> int:
        """Keep everybody from committing, until this process moves it, closes it or dies. Its revision."""
        ...

    def pages(self) -> AsyncIterator[list[Row]]:
        """All rows in key order."""
        ...

    async def move(self, moved: Moved) -> None:
        """Say for good that the target is the truth. Raises Fenced when it was not frozen all the time."""
        ...


class Target(Protocol):
    """Where rows go to."""

    name: str

    async def standing(self) -> Standing:
        """How it is."""
        ...

    async def fill(
        self, incarnation: str, source: str, revision: int, pages: Callable[[], AsyncIterator[list[Row]]]
    ) -> None:
        """Begin anew, with these rows, and all revisions above `revision`. It cannot be opened yet."""
        ...

    def pages(self) -> AsyncIterator[list[Row]]:
        """All rows in key order, as they can be read there."""
        ...

    async def finish(self) -> None:
        """Let it be opened, if it cannot be yet."""
        ...


class Lineage(Protocol):
    """The row that says what an index was made from."""

    key: bytes

    def value(self, incarnation: str, old: bytes | None) -> bytes:
        """Its value in an index that is made from that of `incarnation`, whose row says `old`."""
        ...


async def copy_index(
    source: Source,
    target: Target,
    *,
    new_incarnation: str,
    lineage: "Lineage",
    done: Callable[[Step], None] = lambda _: None,
) -> Copied:
    """Copy, or go on where an earlier run ended. `done` is told of each step.

    Raises InvalidInput when that would not be safe, and whatever the engines raise.
    """
    before, there = await source.standing(), await target.standing()
    incarnation = decide(before, there, source.name, target.name, new_incarnation)
    if there.kind is Kind.OPEN:
        await target.finish()
        return _copied(source, target, before, incarnation, None, again=True)
    revision = await source.freeze()
    done(Step.FROZEN)

    async def rows() -> AsyncIterator[list[Row]]:
        made = False
        async for page in source.pages():
            kept: list[Row] = []
            for row in page:
                if not made and row.key >= lineage.key:
                    old = row.value if row.key == lineage.key else None
                    kept.append(Row(lineage.key, lineage.value(before.incarnation, old), revision))
                    made = True
                if stays(row.key) and row.key != lineage.key:
                    kept.append(row)
            yield kept
        if not made:
            yield [Row(lineage.key, lineage.value(before.incarnation, None), revision)]

    await target.fill(incarnation, before.incarnation, revision, rows)
    done(Step.FILLED)
    wanted, found = await add_up(rows()), await add_up(target.pages())
    if wanted != found:
        raise Damaged(
            f"{target.name} has {found.rows} rows ({found.digest}) where {source.name} has {wanted.rows} "
            f"({wanted.digest}): nothing was moved."
        )
    done(Step.PROVEN)
    if before.kind is not Kind.MOVED:
        await source.move(Moved(incarnation, target.name))
    done(Step.MOVED)
    await target.finish()
    done(Step.FINISHED)
    return _copied(source, target, before, incarnation, found, again=before.kind is Kind.MOVED)


def _copied(
    source: Source, target: Target, before: Standing, incarnation: str, total: Sum | None, *, again: bool
) -> Copied:
    return Copied(
        source=source.name,
        target=target.name,
        incarnation_before=before.incarnation,
        incarnation=incarnation,
        sum=total,
        again=again,
    )


def decide(before: Standing, there: Standing, source: str, target: str, new: str) -> str:
    """The incarnation that the target shall have. Pure. Raises InvalidInput where copying is not safe."""
    match before.kind, there.kind:
        case (Kind.EMPTY, _):
            raise InvalidInput(f"There is no index in {source}.", hint="Is the address right?")
        case (Kind.FILLING, _):
            raise InvalidInput(
                f"{source} holds a copy that was not finished.",
                hint="Finish it, with the command that began it, or copy from where it came from.",
            )
        case (Kind.OPEN, Kind.EMPTY):
            return new
        case (Kind.OPEN, Kind.FILLING) if there.other == before.incarnation:
            return new
        case (Kind.MOVED, Kind.OPEN | Kind.FILLING) if there.incarnation == before.other:
            return before.other
        case (Kind.MOVED, Kind.EMPTY) if before.where == target:
            return before.other
        case (Kind.MOVED, _):
            raise InvalidInput(
                f"The index of {source} was moved to {before.where} ({before.other}), which is the truth.",
                hint="Copy from there, or name it as the target to finish what was begun.",
            )
        case (_, Kind.FILLING):
            raise InvalidInput(
                f"{target} holds a copy of another index that was not finished.",
                hint="Finish that one first, or name another target.",
            )
        case _:
            raise InvalidInput(
                f"{target} holds an index already ({there.incarnation}).", hint="Name one that is empty."
            )


def stays(key: bytes) -> bool:
    """Whether a row goes along. Leases end with the index that granted them."""
    return key != MOVED_ROW and not key.startswith(lease_row(""))


async def add_up(pages: AsyncIterator[list[Row]]) -> Sum:
    """Of keys and values in their order; revisions differ between engines."""
    digest = blake2b(digest_size=16)
    rows = size = 0
    async for page in pages:
        for key, value, _ in page:
            if not stays(key):
                continue
            digest.update(len(key).to_bytes(4, "little") + len(value).to_bytes(4, "little") + key)
            digest.update(value)
            rows += 1
            size += len(key) + len(value)
    return Sum(rows, size, digest.hexdigest())


RECOVERY = "recovery of "
"""What an index that is being made again from the stores says that it is filled from, with the incarnation
of the one that was lost."""


def not_finished(source: str) -> Unavailable:
    """For whoever opens an index that is still being filled from `source`."""
    if source.startswith(RECOVERY):
        return Unavailable(
            "The index is being made again from the stores, and that was not finished.",
            hint="Wait for `holdfast recover`, or give it again.",
        )
    return Unavailable(
        "A copy into this index was not finished.",
        hint="Give `holdfast index copy` again as it was given, or use the index that it came from.",
    )


def moved_hint(moved: Moved) -> str:
    """What a person does about an index that is not there any more."""
    if "://" not in moved.where:
        return "Start the node there, with no `index` in its configuration."
    return f'Say index = "{moved.where}" in the configuration of each node.'
