"""What happened, as values: the row, the words, and who is told what. Pure.

An event says when (this machine's wall clock; order is by `number`, never by time), what kind of thing it
happened to and which one, from what to what, why, who saw it, and what was seen. It is written once and never
changed. What must hold: an event can always be written, so every text is cut to a length that fits, and is
one line without control characters, since it ends up in logs, terminals and other people's programs.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Protocol

import msgspec
from msgspec import Struct

from holdfast.base.errors import Damaged
from holdfast.index.port import Row

FORMAT = 1
TEXT_CHARACTERS_MAX = 500
NAME_CHARACTERS_MAX = 200
EVIDENCE_MAX = 16

EVENTS = b"event/"
HEAD = b"events"
"""The row that says which events there are."""


class Kind(StrEnum):
    """What kind of thing an event is about. Kinds are only added; a reader must bear with one it does not
    know."""

    STORE = "store"
    INDEX = "index"
    DATA = "data"
    CHORE = "chore"
    NODE = "node"
    NOTE = "note"


class Event(Struct, frozen=True, kw_only=True):
    """Something that happened. `number` is 0 until it is in the index; `wall` is seconds since 1970 UTC."""

    wall: float
    kind: str = Kind.NOTE
    subject: str = ""
    before: str = ""
    after: str = ""
    reason: str = ""
    observer: str = ""
    evidence: dict[str, str] = {}
    number: int = 0

    @property
    def text(self) -> str:
        """The event as a sentence."""
        if not self.after:
            return self.reason
        what = f"{self.kind} {self.subject}".strip()
        return f"{what} is {self.after}: {self.reason}" if self.reason else f"{what} is {self.after}"

    @property
    def same(self) -> tuple[str, ...]:
        """What two events have in common that tell the same."""
        return (self.kind, self.subject, self.before, self.after, self.reason)


class Teller(Protocol):
    """Who is told what happened."""

    def __call__(
        self,
        text: str,
        *,
        kind: str = Kind.NOTE,
        subject: str = "",
        before: str = "",
        after: str = "",
        evidence: Mapping[str, str] | None = None,
    ) -> None:
        """`text` is the whole of it, or the reason of a change to `after`."""
        ...


class Head(Struct, frozen=True, array_like=True):
    """The row `events`: those from `first` to `next` - 1 are there, but for `skipped` numbers among them that
    nobody was given."""

    format: int = FORMAT
    first: int = 1
    next: int = 1
    skipped: int = 0

    def skipping_to(self, number: int) -> "Head":
        """The same, going on from `number` at least: where others may have been given those before it."""
        if number <= self.next:
            return self
        if self.first == self.next:
            return Head(self.format, number, number)
        return Head(self.format, self.first, number, self.skipped + number - self.next)


class _EventRow(Struct, frozen=True, array_like=True):
    format: int
    wall_ms: int
    kind: str
    subject: str
    before: str
    after: str
    reason: str
    observer: str
    evidence: dict[str, str]


def make_event(
    wall: float,
    observer: str,
    *,
    kind: str,
    subject: str,
    before: str,
    after: str,
    reason: str,
    evidence: Mapping[str, str],
) -> Event:
    """An event that fits."""
    return Event(
        wall=wall,
        kind=_cut(kind, NAME_CHARACTERS_MAX),
        subject=_cut(subject, NAME_CHARACTERS_MAX),
        before=_cut(before, NAME_CHARACTERS_MAX),
        after=_cut(after, NAME_CHARACTERS_MAX),
        reason=_cut(reason, TEXT_CHARACTERS_MAX),
        observer=_cut(observer, NAME_CHARACTERS_MAX),
        evidence={
            _cut(name, NAME_CHARACTERS_MAX): _cut(value, TEXT_CHARACTERS_MAX)
            for name, value in list(evidence.items())[:EVIDENCE_MAX]
        },
    )


def event_row(number: int) -> bytes:
    """Key of an event's row: in order of number."""
    assert 0 < number < 1 << 64
    return EVENTS + b"%016x" % number


def encode_event(event: Event) -> bytes:
    """The row of an event."""
    return msgspec.msgpack.encode(
        _EventRow(
            FORMAT,
            round(event.wall * 1000),
            event.kind,
            event.subject,
            event.before,
            event.after,
            event.reason,
            event.observer,
            event.evidence,
        )
    )


def decode_event(row: Row) -> Event:
    """The event of a row. Raises Damaged for one of a format that is not known."""
    try:
        found = msgspec.msgpack.decode(row.value, type=_EventRow)
        number = int(row.key.removeprefix(EVENTS), 16)
    except (msgspec.MsgspecError, ValueError) as error:
        raise Damaged(f"The row {row.key!r} is no event: {error}") from None
    if found.format != FORMAT:
        raise Damaged(f"The row {row.key!r} is of format {found.format}; this program knows {FORMAT}.")
    return Event(
        wall=found.wall_ms / 1000,
        kind=found.kind,
        subject=found.subject,
        before=found.before,
        after=found.after,
        reason=found.reason,
        observer=found.observer,
        evidence=found.evidence,
        number=number,
    )


def decode_head(row: Row | None) -> Head:
    """Which events there are; none without a row. Raises Damaged."""
    if row is None:
        return Head()
    try:
        head = msgspec.msgpack.decode(row.value, type=Head)
    except msgspec.MsgspecError as error:
        raise Damaged(f"The row {HEAD!r} cannot be understood: {error}") from None
    if head.format != FORMAT or not 1 <= head.first <= head.next - head.skipped <= head.next:
        raise Damaged(f"The row {HEAD!r} is of format {head.format}; this program knows {FORMAT}.")
    return head


def encode_head(head: Head) -> bytes:
    """The row."""
    return msgspec.msgpack.encode(head)


def _cut(text: str, most: int) -> str:
    line = " ".join("".join(one if one.isprintable() else " " for one in text[: 2 * most]).split())
    return line if len(line) <= most else f"{line[: most - 3]}..."
