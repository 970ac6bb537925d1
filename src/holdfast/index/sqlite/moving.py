"""An embedded index as one end of a copy, while no node runs on it.

Frozen it is because this process has opened it: another that opens it fences this one, which then cannot move
it any more. Moved is a row. As a target it is written like an index that is recovered: each member gets a
checkpoint and does not vote before all have it.
"""

import shutil
import struct
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import msgspec

from holdfast.base.errors import Fenced, HoldfastError, Unavailable
from holdfast.base.randomness import Randomness
from holdfast.index.copying import END, FIRST, MOVED_ROW, PAGE_ROWS, Kind, Moved, Standing
from holdfast.index.port import ABSENT, Committed, Expect, Index, Row, Transaction
from holdfast.index.sqlite.recovery import Verdict, choose
from holdfast.index.sqlite.refounding import Refounding
from holdfast.index.sqlite.remains import look
from holdfast.index.sqlite.scan import Scan
from holdfast.index.sqlite.seat import MemberAccess

_HEAD = struct.Struct("<IIQ")


class SqliteSource:
    """An embedded index that this process has opened."""

    def __init__(self, index: Index, name: str) -> None:
        self.name = name
        self._index = index

    async def standing(self) -> Standing:
        """As `copying` says."""
        incarnation = self._index.status().incarnation
        moved = await moved_to(self._index)
        if moved is None:
            return Standing(Kind.OPEN, incarnation)
        return Standing(Kind.MOVED, incarnation, moved.incarnation, moved.where)

    async def freeze(self) -> int:
        """As `copying` says: opening it did."""
        return self._index.status().revision

    async def pages(self) -> AsyncIterator[list[Row]]:
        """As `copying` says."""
        start = FIRST
        while page := await self._index.scan(start, END, limit=PAGE_ROWS):
            yield [row for row in page if isinstance(row, Row)]
            start = page[-1].key + b"\0"

    async def move(self, moved: Moved) -> None:
        """As `copying` says."""
        put = Transaction((Expect(MOVED_ROW, ABSENT),), ((MOVED_ROW, msgspec.msgpack.encode(moved)),))
        for _ in range(3):
            (outcome,) = await self._index.commit([put])
            if isinstance(outcome, Committed) or await moved_to(self._index) == moved:
                return
        raise Unavailable(f"Whether {self.name} was moved stayed unknown.", hint="Give the command again.")


async def moved_to(index: Index) -> Moved | None:
    """Where an embedded index was moved to."""
    (row,) = await index.get([MOVED_ROW])
    return msgspec.msgpack.decode(row.value, type=Moved) if row is not None else None


class SqliteTarget:
    """The members of an embedded index that is to be. `spool` is a file for the rows until it is there."""

    def __init__(
        self, accesses: Sequence[MemberAccess], spool: Path, name: str, randomness: Randomness
    ) -> None:
        self.name = name
        self._accesses = accesses
        self._spool = spool
        self._randomness = randomness
        self._refounding: Refounding | None = None

    def _look(self) -> dict[str, Scan]:
        scans: dict[str, Scan] = {}
        for access in self._accesses:
            try:
                scans[access.name] = look(access.open_folder())
            except HoldfastError as error:
                raise Unavailable(
                    f"{access.name} of {self.name} cannot be looked at: {error.message}", hint=error.hint
                ) from error
        return scans

    async def standing(self) -> Standing:
        """As `copying` says. What does not look like a copy that was broken off is an index, whatever is the
        matter with it."""
        scans = self._look()
        used = {name: scan for name, scan in scans.items() if scan.incarnation is not None}
        if not used:
            return Standing(Kind.EMPTY)
        incarnations = sorted({scan.incarnation.hex() for scan in used.values() if scan.incarnation})
        choice = choose(list(scans), scans, {})
        if len(incarnations) == 1 and choice.verdict is not Verdict.CHOSEN:
            source, incarnation = self._begun()
            if incarnation == incarnations[0]:
                return Standing(Kind.FILLING, incarnation, source)
        return Standing(Kind.OPEN, ", ".join(incarnations))

    def _begun(self) -> tuple[str, str]:
        """What the spool says: incarnations of the source, and of the copy that was begun."""
        try:
            with self._spool.open("rb") as file:
                source, incarnation = file.readline().decode().split()
                return source, incarnation
        except (OSError, ValueError):
            return "", ""

    async def fill(
        self, incarnation: str, source: str, revision: int, pages: Callable[[], AsyncIterator[list[Row]]]
    ) -> None:
        """As `copying` says."""
        if (await self.standing()).kind is Kind.OPEN:
            raise Fenced(f"Somebody else writes into {self.name}.")
        for access in self._accesses:
            _empty(Path(access.place))
        self._spool.unlink(missing_ok=True)
        with self._spool.open("xb") as file:
            file.write(f"{source} {incarnation}\n".encode())
            async for page in pages():
                for row in page:
                    file.write(_HEAD.pack(len(row.key), len(row.value), min(row.revision, revision)))
                    file.write(row.key)
                    file.write(row.value)
        self._refounding = Refounding(
            self._accesses, lambda: _rows(self._spool), incarnation, revision, self._randomness
        )
        self._refounding.write()

    async def pages(self) -> AsyncIterator[list[Row]]:
        """As `copying` says: of the file, with which each member's checkpoint was compared when it was read
        back."""
        page: list[Row] = []
        for row in _rows(self._spool):
            page.append(row)
            if len(page) == PAGE_ROWS:
                yield page
                page = []
        yield page

    async def finish(self) -> None:
        """As `copying` says."""
        if self._refounding is not None:
            self._refounding.join()
        self._spool.unlink(missing_ok=True)


def _empty(folder: Path) -> None:
    """Remove what a copy that was broken off has left. The folder stays: it was seen there."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _rows(spool: Path) -> Iterator[Row]:
    with spool.open("rb") as file:
        file.readline()
        while head := file.read(_HEAD.size):
            keys, values, revision = _HEAD.unpack(head)
            yield Row(_exactly(file, keys), _exactly(file, values), revision)


def _exactly(file: BinaryIO, count: int) -> bytes:
    data = file.read(count)
    assert len(data) == count, "this process wrote it"
    return data
