"""One member of the log: what it promised, its segments and its checkpoint, over a `Folder`.

Synchronous; one thread at a time. Alone it can tell everything: checkpoint plus segments. What must hold:

- it never counts a record as there unless the chain of hashes from its base reaches it.
- it takes records only from the epoch it promised last, and says so after each sync, not only before:
  whoever promises a later epoch and then reads it sees everything that was ever counted.
- nothing is written over. A process appends only to segments that it created, under names (epoch,
  generation) that nobody else can have, and a diverging suffix is cut by a later segment that starts
  before it. So a process that was paused and has been replaced can do no harm when it wakes.

Promises are entries appended to the file `member`; of two that claim one epoch the first entry wins.
"""

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from holdfast.base.checksums import crc32c
from holdfast.base.errors import Damaged, Fenced
from holdfast.index.sqlite import checkpoint as ckpt
from holdfast.index.sqlite.checkpoint import Base, empty_base
from holdfast.index.sqlite.folder import Folder, MemberFailed, MemberFull
from holdfast.index.sqlite.records import (
    SEGMENT_HEADER_BYTES,
    Record,
    SegmentHeader,
    frame_bytes,
    make_frame,
)
from holdfast.index.sqlite.scan import (
    JOINING_FILE,
    MEMBER_FILE,
    MEMBER_HEADER_BYTES,
    PROMISE_BYTES,
    Place,
    Scan,
    made_by,
    parse_promises,
    read_frame,
    scan_member,
)

SEGMENT_BYTES = 16 << 20
FRAME_PAYLOAD_BYTES_MAX = 4 << 20
_SPARE_STEP_BYTES = 1 << 20
_SMALL_SEGMENT_PARTS = 64
"""On a full disk a segment is this much smaller."""


class MemberRefused(Fenced):
    """The member has promised a later epoch to another process; fact `epoch` says which."""


class MemberDamaged(Damaged):
    """Content of a member does not verify; another member has to be asked."""


class Member:
    """A member in use. Call `scan` first; `claim` and `start` before `append`."""

    def __init__(self, folder: Folder, segment_bytes: int = SEGMENT_BYTES) -> None:
        self._folder = folder
        self._segment_bytes = segment_bytes
        self._incarnation = b""
        self._epoch = 0
        self._instance = b""
        self._witnessed = 0
        self._frames: list[Place] = []
        self._base: Base | None = None
        self._base_name = ""
        self._segment = ""
        self._segment_size = 0
        self._segment_generation = 0
        self._generation = 0
        self._at = 0
        self._next = 0
        self._writing: _Writing | None = None
        self._spare = ""
        self._spare_at = 0
        self._full = False
        self.log_bytes = 0
        """What a checkpoint would set free: frames since the last one, and whole segments that are not
        written any more, however little is in them."""
        self.checkpoint_bytes = 0

    def scan(self) -> Scan:
        """Read and verify everything. What is there is made durable first: after a killed process the
        page cache may hold what the disk does not."""
        scan = scan_member(self._folder)
        self._incarnation = scan.incarnation or b""
        self._frames = list(scan.places)
        self._base = scan.base
        self._base_name = scan.checkpoint
        self._generation = scan.generation
        self.checkpoint_bytes = scan.checkpoint_bytes
        # Each start begins a segment. Unless they count, those of many starts fill the disk.
        self.log_bytes = sum(
            self._folder.size(name) for name in self._folder.names() if name.startswith("log-")
        )
        return scan

    def found(self, incarnation: bytes) -> None:
        """Make this an empty member of the log `incarnation`; whatever log it held is removed. Until
        `joined`, it does not vote."""
        names = self._folder.names()
        if JOINING_FILE not in names:
            self._folder.create(JOINING_FILE, 0)
        for name in names:
            if name == MEMBER_FILE or made_by(name):
                self._folder.remove(name)
        self._folder.create(MEMBER_FILE, 0)
        self._folder.append(MEMBER_FILE, member_header(incarnation))
        self._incarnation = incarnation
        self._frames = []
        self._base, self._base_name = empty_base(incarnation), ""
        self.log_bytes = self.checkpoint_bytes = 0

    def joined(self) -> None:
        """The copy is whole: from now on this member votes. Durable when it returns."""
        self._folder.remove(JOINING_FILE)
        self._folder.sync_names()

    def claim(self, epoch: int, instance: bytes) -> None:
        """Promise to take records of `epoch` from `instance` only. Raises MemberRefused when that epoch or
        a later one is promised already."""
        promised = self._promises()
        if promised != (epoch, instance):
            if promised[0] >= epoch:
                raise _refused(promised[0])
            size = self._folder.size(MEMBER_FILE)
            pad = bytes(-(size - MEMBER_HEADER_BYTES) % PROMISE_BYTES)
            self._folder.append(MEMBER_FILE, pad + promise(epoch, instance))
            # Another process may have written in between: the first entry of an epoch wins.
            promised = self._promises()
            if promised != (epoch, instance):
                raise _refused(promised[0])
        self._epoch, self._instance = epoch, instance

    def _promises(self) -> tuple[int, bytes]:
        size = self._folder.size(MEMBER_FILE)
        raw = self._folder.read(MEMBER_FILE, 0, size)
        self._witnessed = len(raw)
        return parse_promises(raw)

    def check(self) -> None:
        """Still this folder, still this epoch? Raises MemberFailed or MemberRefused."""
        if self._folder.witness(MEMBER_FILE) != self._witnessed:
            promised = self._promises()
            if promised[0] < self._epoch:
                # Nobody takes a promise back: what is left of the file is not what was written.
                raise MemberFailed(f"Its promise of epoch {self._epoch} is gone.")
            if promised != (self._epoch, self._instance):
                raise _refused(promised[0])

    def start(self, sequence: int, previous: bytes) -> None:
        """Take records from `sequence` on, in a segment of their own; those from there on that were here
        before are cut."""
        assert self._epoch, "claim first"
        self._frames = [
            place if place.last < sequence else place._replace(last=sequence - 1)
            for place in self._frames
            if place.first < sequence
        ]
        self._next = sequence
        for name in self._folder.names():
            unfinished = name.startswith("spare-") or name.endswith(".new")
            if unfinished and (made := made_by(name)) and made[0] <= self._epoch:
                self._folder.remove(name)
        self._roll(previous, 0)

    def append(self, records: Sequence[Record]) -> int:
        """Write records that follow the last one, durably, in as few frames as fit; returns the last
        sequence. Raises MemberFailed or MemberRefused; then nothing of it may be counted."""
        at = 0
        while at < len(records):
            size, end = 0, at
            while end < len(records) and (
                not size or size + len(records[end].raw) <= FRAME_PAYLOAD_BYTES_MAX
            ):
                size += len(records[end].raw)
                end += 1
            self._write_frame(records[at:end], size)
            at = end
        self.check()
        return self._next - 1

    def _write_frame(self, records: Sequence[Record], payload_bytes: int) -> None:
        first = records[0]
        assert first.sequence == self._next, f"record {first.sequence} is not {self._next}"
        if self._at + frame_bytes(payload_bytes) > self._segment_size:
            self._roll(first.previous, frame_bytes(payload_bytes))
        frame = make_frame(self._epoch, self._segment_generation, self._at, records)
        self._folder.write(self._segment, self._at, frame)
        last = records[-1].sequence
        self._frames.append(
            Place(first.sequence, last, first.revision, self._segment, self._at, payload_bytes)
        )
        self._at += len(frame)
        self.log_bytes += len(frame)
        self._next = last + 1

    def _roll(self, previous: bytes, room_bytes: int) -> None:
        size = max(self._segment_bytes, SEGMENT_HEADER_BYTES + room_bytes)
        temporary = self._spare
        self._full = False
        if size != self._segment_bytes or self._spare_at < size:
            temporary = self._name("log") + ".new"
            try:
                self._folder.create(temporary, size)
            except MemberFull:
                # Deletes have to go on, or it stays full.
                self._full = True
                size = max(self._segment_bytes // _SMALL_SEGMENT_PARTS, SEGMENT_HEADER_BYTES + room_bytes)
                self._folder.create(temporary, size)
        self.log_bytes += self._segment_size - self._at
        # The name comes last: a segment whose header does not verify was damaged, not interrupted.
        name = self._name("log")
        self._segment_generation = self._generation
        self._folder.write(temporary, 0, self._header(size, previous).pack())
        self._folder.rename(temporary, name)
        self._spare, self._spare_at = "", 0
        self._segment, self._segment_size, self._at = name, size, SEGMENT_HEADER_BYTES

    def _name(self, kind: str) -> str:
        """A name that nobody else can have: this epoch is ours alone."""
        self._generation += 1
        return f"{kind}-{self._epoch:016x}-{self._generation:08x}"

    def _header(self, size: int, previous: bytes) -> SegmentHeader:
        return SegmentHeader(
            self._incarnation, self._epoch, self._segment_generation, size, self._next, previous
        )

    def wants_spare(self) -> bool:
        """Whether `prepare_spare` has work: the segment is half full and the next one is not ready."""
        wanted = self._spare_at < self._segment_bytes and 2 * self._at > self._segment_size > 0
        return wanted and not self._full

    def prepare_spare(self) -> None:
        """One bounded step towards the next segment: writing its zeros now makes later syncs cheaper.
        On a full disk there is none; the segment in use is not touched by that."""
        if not self._spare:
            name = self._name("spare")
            try:
                self._folder.create(name, self._segment_bytes)
            except MemberFull:
                self._full = True
            else:
                self._spare = name
            return
        step = min(_SPARE_STEP_BYTES, self._segment_bytes - self._spare_at)
        self._folder.write(self._spare, self._spare_at, bytes(step))
        self._spare_at += step

    def read(self, after: int, through: int, bytes_max: int) -> list[Record]:
        """Records with after < sequence <= through, from the first on, about `bytes_max` bytes and at
        least one; empty when there are none here. Raises MemberFailed or MemberDamaged."""
        at = bisect_right(self._frames, after + 1, key=lambda place: place.first) - 1
        if at < 0 or self._frames[at].last <= after:
            return []
        found: list[Record] = []
        size, wanted = 0, after + 1
        while at < len(self._frames) and wanted <= through and (not found or size < bytes_max):
            place = self._frames[at]
            records = read_frame(self._folder, place)
            if records is None:
                raise MemberDamaged(f"Record {wanted} of the index log does not verify in {place.segment}.")
            for record in records:
                if wanted <= record.sequence <= min(place.last, through):
                    found.append(record)
                    size += len(record.raw)
                    wanted += 1
            at += 1
        return found

    def sequence_at(self, revision: int) -> int | None:
        """A sequence after which all changes beyond `revision` lie; None when the log here begins later."""
        at = bisect_right(self._frames, revision, key=lambda place: place.revision) - 1
        return self._frames[at].first - 1 if at >= 0 else None

    @property
    def base(self) -> Base | None:
        """The checkpoint, or the empty one; None when there is no valid one."""
        return self._base

    def checkpoint_block(self, offset: int, number: int) -> tuple[bytes, int]:
        """The raw bytes of block `number` of the checkpoint (or its end) at `offset`, verified, and where the
        next one is; the first is at `HEAD_BYTES`. Raises MemberDamaged."""
        assert self._base is not None
        assert self._base_name
        head = self._folder.read(self._base_name, offset, ckpt.BLOCK_HEAD_BYTES)
        length = ckpt.payload_bytes(head)
        raw = b"" if length is None else self._folder.read(self._base_name, offset, len(head) + length)
        end = ckpt.parse_end(raw, self._base)
        whole = end[0] == number if end is not None else ckpt.is_block(raw, self._base, number)
        if not whole:
            raise MemberDamaged(f"{self._base_name} does not verify at byte {offset}.")
        return raw, offset + len(raw)

    def begin_checkpoint(self, base: Base) -> None:
        """Start writing a checkpoint beside the one that is there; an unfinished one is dropped."""
        self.abandon_checkpoint()
        name = self._name(f"checkpoint-{base.sequence:016x}")
        self._writing = _Writing(name, base, ckpt.HEAD_BYTES, 0, False)
        self._folder.create(name + ".new", 0)
        self._folder.write(name + ".new", 0, ckpt.pack_head(base))

    def add_checkpoint_block(self, raw: bytes) -> None:
        """The next block, or the end."""
        assert self._writing is not None
        name, base, at, number, _ = self._writing
        end = ckpt.parse_end(raw, base)
        assert end[0] == number if end is not None else ckpt.is_block(raw, base, number)
        self._folder.write(name + ".new", at, raw)
        self._writing = _Writing(name, base, at + len(raw), number + 1, end is not None)

    def abandon_checkpoint(self) -> None:
        """Drop one that is not finished, if there is one, and the room it takes."""
        if self._writing is not None:
            self._folder.remove(self._writing.name + ".new")
            self._writing = None

    def end_checkpoint(self) -> None:
        """Make it the checkpoint and drop what it replaces, oldest first."""
        assert self._writing is not None
        name, base, size, _, ended = self._writing
        assert ended, "a checkpoint without its end replaces nothing"
        self.check()
        self._folder.rename(name + ".new", name)
        self._writing = None
        self._base, self._base_name, self.checkpoint_bytes = base, name, size
        kept = [place for place in self._frames if place.last > base.sequence]
        used = {place.segment for place in kept} | {self._segment}
        self._frames = [place for place in self._frames if place.segment in used]
        self.log_bytes = sum(frame_bytes(place.length) for place in kept)
        for other in sorted(self._folder.names()):
            made = made_by(other)
            if made is None or made[0] > self._epoch:
                continue
            replaced = (
                other.startswith("checkpoint-") and other != name and _sequence_of(other) <= base.sequence
            )
            if replaced or (other.startswith("log-") and other not in used):
                self._folder.remove(other)

    def end_copied_checkpoint(self) -> None:
        """As `end_checkpoint`, for one that stands for more than, or other than, what is here."""
        self._frames = []
        self.end_checkpoint()

    def close(self) -> None:
        """Let go of descriptors."""
        self._folder.close()


class _Writing(NamedTuple):
    name: str
    base: Base
    at: int
    number: int
    ended: bool


def _sequence_of(name: str) -> int:
    return int(name.split("-")[1], 16)


def _refused(epoch: int) -> MemberRefused:
    return MemberRefused(
        f"This part of the index log has promised epoch {epoch} to another process.", epoch=epoch
    )


def member_header(incarnation: bytes) -> bytes:
    """The first bytes of the file `member`."""
    raw = b"HFMEMB01" + incarnation
    raw = raw.ljust(MEMBER_HEADER_BYTES - 4, b"\0")
    return raw + crc32c(raw).to_bytes(4, "little")


def promise(epoch: int, instance: bytes) -> bytes:
    """One entry of the file `member`."""
    raw = b"HFPR" + bytes(4) + epoch.to_bytes(8, "little") + instance
    raw = raw.ljust(PROMISE_BYTES - 4, b"\0")
    return raw + crc32c(raw).to_bytes(4, "little")


__all__ = ["Member", "MemberDamaged", "MemberFailed", "MemberRefused", "Scan"]
