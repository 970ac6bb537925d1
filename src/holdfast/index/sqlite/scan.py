"""Reading a member from disk and believing only what verifies.

Pure apart from the reads of its `Folder`. The result says which chain of records this member vouches for
and whether anything is wrong that a crash cannot explain. Such a member is a source of records, never a
vote: it may have forgotten what it once acknowledged.

A crash explains: a last frame of which some sectors are still the zeros that were there before, an
unfinished checkpoint, a promise cut short, segments older than the checkpoint. It does not explain: a bad
frame with a good one behind it (a frame is written only when the one before is synced) or without such a
sector (a medium writes a sector whole or not at all), a segment that starts beyond the end of the chain, a
segment shorter than allocated, a header that does not verify although it was synced before its file got
its name.
"""

import re
from typing import NamedTuple

from msgspec import Struct

from holdfast.base.checksums import crc32c
from holdfast.index.sqlite import checkpoint as ckpt
from holdfast.index.sqlite.checkpoint import Base, empty_base
from holdfast.index.sqlite.folder import Folder
from holdfast.index.sqlite.records import (
    FRAME_ALIGN,
    FRAME_HEADER_BYTES,
    INCARNATION_BYTES,
    SEGMENT_HEADER_BYTES,
    Record,
    SegmentHeader,
    frame_bytes,
    frame_payload,
    frame_payload_bytes,
    members_of,
    parse_segment_header,
    records_in,
)

MEMBER_FILE = "member"
JOINING_FILE = "joining"
MEMBER_HEADER_BYTES = 64
PROMISE_BYTES = 64
_WINDOW_BYTES = 64 << 10
_SEGMENT_NAME = re.compile(r"log-([0-9a-f]{16})-([0-9a-f]{8})\Z")
_CHECKPOINT_NAME = re.compile(r"checkpoint-([0-9a-f]{16})-([0-9a-f]{16})-([0-9a-f]{8})\Z")


_MADE = re.compile(r"(?:log|spare|checkpoint-[0-9a-f]{16})-([0-9a-f]{16})-([0-9a-f]{8})(?:\.new)?\Z")


def made_by(name: str) -> tuple[int, int] | None:
    """(epoch, generation) of the process that made a file of ours; None for other files."""
    found = _MADE.match(name)
    return (int(found[1], 16), int(found[2], 16)) if found else None


class Place(NamedTuple):
    """A frame: its records `first` to `last` that still count, the revision before the first, and where
    it lies; `length` is that of its payload in bytes."""

    first: int
    last: int
    revision: int
    segment: str
    offset: int
    length: int


class Entry(NamedTuple):
    """One record of a chain, without its content. `revision` is that before it."""

    sequence: int
    epoch: int
    hash: bytes
    revision: int


class Scan(Struct, frozen=True):
    """What a member holds. `incarnation` is None when it holds nothing at all. `entries` follow `base`
    without gaps; `base` is None when neither a checkpoint nor the beginning of the log is there, and then
    there are no entries. `damage` lists what no crash explains. `joining` is a copy that was not finished:
    what it lacks it may once have held."""

    incarnation: bytes | None
    promised: int
    base: Base | None
    entries: tuple[Entry, ...]
    members: tuple[str, ...]
    damage: tuple[str, ...]
    places: tuple[Place, ...]
    checkpoint: str
    checkpoint_bytes: int
    generation: int
    joining: bool = False

    @property
    def tip(self) -> tuple[int, int]:
        """(epoch, sequence) of the last record; (0, 0) of none."""
        if self.entries:
            return self.entries[-1].epoch, self.entries[-1].sequence
        return (self.base.epoch, self.base.sequence) if self.base else (0, 0)

    @property
    def votes(self) -> bool:
        """Whether what this member does not hold can be believed never to have been synced on it."""
        return self.incarnation is not None and self.base is not None and not self.damage and not self.joining

    def hash_at(self, sequence: int) -> bytes | None:
        """The hash of the record at `sequence`, if it is in this chain."""
        if self.base is None:
            return None
        if sequence == self.base.sequence:
            return self.base.hash
        at = sequence - self.base.sequence - 1
        return self.entries[at].hash if 0 <= at < len(self.entries) else None


def parse_promises(raw: bytes) -> tuple[int, bytes]:
    """The highest epoch promised in the file `member`, and to whom; (0, b"") for none. Entries that do
    not verify are promises that were never given."""
    best = (0, b"")
    for at in range(MEMBER_HEADER_BYTES, len(raw) - PROMISE_BYTES + 1, PROMISE_BYTES):
        entry = raw[at : at + PROMISE_BYTES]
        if entry[:4] == b"HFPR" and crc32c(entry[:-4]) == int.from_bytes(entry[-4:], "little"):
            epoch = int.from_bytes(entry[8:16], "little")
            if epoch > best[0]:
                best = epoch, entry[16 : 16 + INCARNATION_BYTES]
    return best


def parse_member_header(raw: bytes) -> bytes | None:
    """The incarnation, or None when the header does not verify."""
    head = raw[:MEMBER_HEADER_BYTES]
    if len(head) < MEMBER_HEADER_BYTES or not head.startswith(b"HFMEMB01"):
        return None
    good = crc32c(head[:-4]) == int.from_bytes(head[-4:], "little")
    return head[8 : 8 + INCARNATION_BYTES] if good else None


def read_frame(folder: Folder, place: Place) -> list[Record] | None:
    """The records of a frame that was there before; None when it does not verify any more."""
    found = _SEGMENT_NAME.match(place.segment)
    assert found is not None
    raw = folder.read(place.segment, place.offset, FRAME_HEADER_BYTES + place.length)
    if frame_payload_bytes(raw, int(found[1], 16), int(found[2], 16), place.offset) != place.length:
        return None
    payload = frame_payload(raw, place.length)
    return None if payload is None else list(records_in(payload))


def scan_member(folder: Folder) -> Scan:
    """Read all of it. Raises MemberFailed when the folder cannot be read."""
    folder.sync_names()
    names = folder.names()
    segments = sorted(name for name in names if _SEGMENT_NAME.match(name))
    checkpoints = sorted(name for name in names if _CHECKPOINT_NAME.match(name))
    damage: list[str] = []
    incarnation, promised = None, 0
    if MEMBER_FILE in names:
        raw = folder.read(MEMBER_FILE, 0, folder.size(MEMBER_FILE))
        incarnation, (promised, _) = parse_member_header(raw), parse_promises(raw)
    if MEMBER_FILE not in names and not segments and not checkpoints:
        return Scan(None, 0, None, (), (), (), (), "", 0, 0)
    if incarnation is None:
        damage.append("member: its header does not verify" if MEMBER_FILE in names else "member: is missing")
    made = list(filter(None, map(made_by, names)))
    made_in = max((epoch for epoch, _ in made), default=0)
    if made_in > promised and incarnation is not None:
        # A file is made only in an epoch that was promised before: later promises may be gone, too.
        damage.append(f"member: its promise of epoch {made_in} is missing")
    chain = _Chain(damage)
    base, name, size = _newest_checkpoint(folder, checkpoints, incarnation, damage)
    chain.checkpoint = base
    for segment in segments:
        found = _SEGMENT_NAME.match(segment)
        assert found is not None
        _read_segment(folder, segment, int(found[1], 16), int(found[2], 16), incarnation, chain)
    if incarnation is None:
        incarnation = base.incarnation if base else chain.incarnation
    chain.settle(incarnation)
    return Scan(
        incarnation,
        max(promised, made_in),
        chain.base,
        tuple(chain.entries),
        chain.members,
        tuple(damage),
        tuple(chain.places),
        name,
        size,
        max((generation for _, generation in made), default=0),
        JOINING_FILE in names,
    )


def _newest_checkpoint(
    folder: Folder, names: list[str], incarnation: bytes | None, damage: list[str]
) -> tuple[Base | None, str, int]:
    for name in reversed(names):
        size = folder.size(name)
        base = ckpt.parse_head(folder.read(name, 0, ckpt.HEAD_BYTES))
        end = folder.read(name, max(0, size - ckpt.END_BYTES), ckpt.END_BYTES)
        if base is None or ckpt.parse_end(end, base) is None:
            damage.append(f"{name}: does not verify")
        elif incarnation is not None and base.incarnation != incarnation:
            damage.append(f"{name}: belongs to another index")
        else:
            return base, name, size
    return None, "", 0


class _Chain:
    """The longest chain that the segments read so far give, in order of their making."""

    def __init__(self, damage: list[str]) -> None:
        self.damage = damage
        self.checkpoint: Base | None = None
        self.incarnation: bytes | None = None
        self.base: Base | None = None
        self.entries: list[Entry] = []
        self.places: list[Place] = []
        self.members: tuple[str, ...] = ()
        self._changes: list[tuple[int, tuple[str, ...]]] = []
        self._low = 0
        self._low_hash = b""

    def tip(self) -> int:
        return self._low + len(self.entries)

    def hash_at(self, sequence: int) -> bytes | None:
        if sequence == self._low:
            return self._low_hash
        at = sequence - self._low - 1
        return self.entries[at].hash if 0 <= at < len(self.entries) else None

    def begin(self, name: str, header: SegmentHeader) -> bool:
        """A segment that starts at `header.start`; False when nothing connects it to a base."""
        before = header.start - 1
        if self._low_hash and self.hash_at(before) == header.previous:
            self._cut(before)
            return True
        covered = self.checkpoint is not None and self.checkpoint.sequence >= before
        if self._low_hash and not covered:
            # Either records were lost at the end of the segment before, or the chain has a hole.
            self.damage.append(f"{name}: starts at {header.start}, which nothing before it reaches")
            return False
        if not covered and before:
            self.damage.append(f"{name}: starts at {header.start}, without what was before")
            return False
        self._low, self._low_hash = before, header.previous
        self.entries, self.places, self._changes = [], [], []
        return True

    def _cut(self, last: int) -> None:
        del self.entries[last - self._low :]
        while self.places and self.places[-1].first > last:
            self.places.pop()
        if self.places and self.places[-1].last > last:
            self.places[-1] = self.places[-1]._replace(last=last)
        while self._changes and self._changes[-1][0] > last:
            self._changes.pop()

    def add(self, records: list[Record], place: Place) -> bool:
        """Records of a frame that verified; False when they do not continue the chain."""
        sequence, previous = self.tip(), self.hash_at(self.tip())
        epoch = self.entries[-1].epoch if self.entries else 0
        for record in records:
            sequence += 1
            if (record.sequence, record.previous) != (sequence, previous) or record.epoch < epoch:
                return False
            previous, epoch = record.hash, record.epoch
        for record in records:
            self.entries.append(Entry(record.sequence, record.epoch, record.hash, record.revision))
            if (members := members_of(record)) is not None:
                self._changes.append((record.sequence, members))
        self.places.append(place)
        return True

    def settle(self, incarnation: bytes | None) -> None:
        """Put the chain on its base: the checkpoint, or the beginning of the log."""
        base = self.checkpoint
        if base is None:
            if self._low or incarnation is None:
                if self._low:
                    self.damage.append("checkpoint: is missing, and so is the beginning of the log")
                self.entries, self.places = [], []
                return
            self.base = empty_base(incarnation)
        else:
            self.base = base
            if self.hash_at(base.sequence) == base.hash and self._low_hash:
                del self.entries[: base.sequence - self._low]
            else:
                # Installed over a log that was too old or had diverged, and not followed by records yet.
                if self._low > base.sequence:
                    self.damage.append("log: records between the checkpoint and the log are missing")
                self.entries, self.places, self._changes = [], [], []
        self.members = self.base.members
        for sequence, members in self._changes:
            if sequence > self.base.sequence:
                self.members = members


def _read_segment(
    folder: Folder, name: str, epoch: int, generation: int, incarnation: bytes | None, chain: _Chain
) -> None:
    folder.sync(name)
    segment = _Window(folder, name)
    header = parse_segment_header(segment.at(0, SEGMENT_HEADER_BYTES))
    if header is None:
        chain.damage.append(f"{name}: its header does not verify")
        return
    if (header.epoch, header.generation) != (epoch, generation):
        chain.damage.append(f"{name}: holds another segment")
        return
    if incarnation is not None and header.incarnation != incarnation:
        chain.damage.append(f"{name}: belongs to another index")
        return
    chain.incarnation = header.incarnation
    if segment.size < header.size:
        chain.damage.append(f"{name}: has {segment.size} of {header.size} bytes")
    if not chain.begin(name, header):
        return
    at = SEGMENT_HEADER_BYTES
    while at < segment.size:
        length = frame_payload_bytes(segment.at(at, FRAME_HEADER_BYTES), epoch, generation, at)
        records = _records(segment, at, length)
        if records is None or not chain.add(
            records,
            Place(records[0].sequence, records[-1].sequence, records[0].revision, name, at, length or 0),
        ):
            torn = records is None and _is_torn(segment, at, length)
            if not torn or _good_frame_after(segment, at, epoch, generation):
                chain.damage.append(f"{name}: a frame at byte {at} does not verify")
            return
        at += frame_bytes(length or 0)


class _Window:
    """A file read in pieces: whole segments in memory, one of each member at once, would stay with the
    process for good."""

    def __init__(self, folder: Folder, name: str) -> None:
        self._folder = folder
        self._name = name
        self.size = folder.size(name)
        self._begin = 0
        self._raw = b""

    def at(self, offset: int, length: int) -> bytes:
        """Those bytes; fewer only at the end of the file."""
        begin = offset - self._begin
        if begin < 0 or begin + length > len(self._raw):
            self._raw = b""
            self._raw = self._folder.read(self._name, offset, max(length, _WINDOW_BYTES))
            self._begin, begin = offset, 0
        return self._raw[begin : begin + length]


def _records(segment: _Window, at: int, length: int | None) -> list[Record] | None:
    if length is None or at + FRAME_HEADER_BYTES + length > segment.size:
        return None
    payload = frame_payload(segment.at(at, FRAME_HEADER_BYTES + length), length)
    if payload is None:
        return None
    try:
        return list(records_in(payload))
    except ValueError:
        return None


def _is_torn(segment: _Window, at: int, length: int | None) -> bool:
    """Whether a write that was cut short can have left the frame at `at`, whose header, if it verifies,
    announces `length`: some of its sectors are as they were before anything was written."""
    end = min(at + FRAME_ALIGN, segment.size) if length is None else at + frame_bytes(length)
    return end <= segment.size and any(
        not any(segment.at(sector, FRAME_ALIGN)) for sector in range(at, end, FRAME_ALIGN)
    )


def _good_frame_after(segment: _Window, at: int, epoch: int, generation: int) -> bool:
    begin = at + FRAME_ALIGN
    while begin < segment.size:
        raw = segment.at(begin, _WINDOW_BYTES)
        found = raw.find(b"HFLF")
        while found >= 0:
            at = begin + found
            if found % FRAME_ALIGN == 0:
                head = raw[found : found + FRAME_HEADER_BYTES]
                if _records(segment, at, frame_payload_bytes(head, epoch, generation, at)):
                    return True
            found = raw.find(b"HFLF", found + 1)
        begin += _WINDOW_BYTES
    return False
