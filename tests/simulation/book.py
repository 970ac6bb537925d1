"""The book of everything clients asked and were told: histories for the checker, bytes to compare with.

A version is known by its token, which travels in its user metadata; every write and copy has a new one.
Bytes are known by their ETag. Reads are compared here, at once: with the bytes that were written, whole
or the range that was asked for.
"""

from msgspec import Struct, field

from holdfast.objects.model import Listing, ListObjects, VersionRecord
from tests.simulation.contents import etag_of
from tests.simulation.history import ANYTHING, NOTHING, Impossible, Need, Op, Sort, check

TOKEN = "token"


class Violation(AssertionError):
    """A promise was broken."""


class Version(Struct):
    """What is known of a version that somebody tried to make. The etag of a copy is that of whatever lay
    at `source`, until somebody was told."""

    where: str
    etag: str = ""
    source: str = ""


class Open(Struct):
    """A request that has begun. `key` is bucket/key."""

    number: int
    key: str
    what: str
    began: int
    at: float


class Answered(Struct, frozen=True):
    """A request and how it went, for what is said of latencies and failures."""

    what: str
    key: str
    began: float
    ended: float
    size: int
    error: str = ""
    slack_s: float = 0.0
    refused: bool = False

    @property
    def took_s(self) -> float:
        """How long it took, apart from what the client itself took."""
        return self.ended - self.began - self.slack_s


class Book(Struct):
    """All of it. `doubtful` are requests without an acknowledgement that may still come true."""

    versions: dict[str, Version] = field(default_factory=dict)
    bytes_of: dict[str, bytes] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    histories: dict[str, list[Op]] = field(default_factory=dict)
    doubtful: list[tuple[str, int]] = field(default_factory=list)
    answered: list[Answered] = field(default_factory=list)
    requests: int = 0
    acknowledged: int = 0
    crash_tick: int = 0

    def begin(self, key: str, what: str, tick: int, at: float) -> Open:
        """A request goes out."""
        self.requests += 1
        return Open(self.requests, key, what, tick, at)

    def promise(self, key: str, token: str, data: bytes, etag_of_parts: str = "") -> str:
        """These bytes will be written as this version. Answers its etag."""
        digest = etag_of(data)
        etag = etag_of_parts or digest
        self.versions[token] = Version(key, etag)
        self.bytes_of[etag] = self.bytes_of[digest] = data
        self.digests[etag] = digest
        return etag

    def promise_copy(self, key: str, token: str, source: str) -> None:
        """A copy of whatever lies at `source` will be written as this version."""
        self.versions[token] = Version(key, source=source)

    def learn(self, token: str, etag: str) -> None:
        """Somebody was told what a version is."""
        if etag not in self._etags(token):
            raise Violation(f"{token} is said to have etag {etag}, not one of {sorted(self._etags(token))}")
        self.versions[token].etag = etag

    def same_bytes(self, etag: str) -> str:
        """All etags that objects with these bytes can have, in one text."""
        digest = self.digests.get(etag, etag)
        return " ".join(sorted({etag, digest} | {e for e, d in self.digests.items() if d == digest}))

    def _etags(self, token: str) -> frozenset[str]:
        """What a version can be."""
        found: set[str] = set()
        seen: set[str] = set()
        sources: list[Version] = [self.versions[token]]
        while sources:
            version = sources.pop()
            if version.etag:
                found.add(version.etag)
                if version is not self.versions[token]:
                    # Bytes that had to be written again have the etag of a simple object.
                    found.add(self.digests.get(version.etag, version.etag))
            elif version.source not in seen:
                seen.add(version.source)
                sources += [other for other in self.versions.values() if other.where == version.source]
        return frozenset(found)

    def saw(self, open_: Open, tick: int, need: Need) -> None:
        """A read, or a refusal, that says what was there."""
        self._add(open_.key, Op(open_.number, open_.what, open_.began, tick, need))

    def wrote(self, open_: Open, tick: int, token: str | None, need: Need = ANYTHING) -> None:
        """An acknowledged write (`None` for a deletion)."""
        self.acknowledged += 1
        self._add(open_.key, Op(open_.number, open_.what, open_.began, tick, need, True, token))

    def doubts(self, open_: Open, token: str | None, need: Need = ANYTHING, *, crashed: bool) -> None:
        """A write without an acknowledgement; with `crashed`, because the node died."""
        history = self.histories.setdefault(open_.key, [])
        ended = self.crash_tick if crashed else None
        if not crashed:
            self.doubtful.append((open_.key, len(history)))
        history.append(Op(open_.number, open_.what, open_.began, ended, need, True, token, True))

    def crashed(self, tick: int) -> None:
        """What was in doubt can come no more: the node that knew of it is gone, and fenced."""
        self.crash_tick = tick
        for key, at in self.doubtful:
            self.histories[key][at] = self.histories[key][at]._replace(ended=tick)
        self.doubtful.clear()

    def _add(self, key: str, op: Op) -> None:
        self.histories.setdefault(key, []).append(op)

    def read(self, open_: Open, tick: int, record: VersionRecord, data: bytes | None, first: int) -> None:
        """A version that was read: all its bytes, or those from `first` on; None for a HEAD."""
        token = dict(record.metadata).get(TOKEN, "?")
        version = self.versions.get(token)
        if version is None or version.where != open_.key:
            raise Violation(
                f"{open_.what} of {open_.key} answered with {token}, which was never written there"
            )
        self.learn(token, record.etag)
        whole = self.bytes_of[record.etag]
        if record.size != len(whole):
            raise Violation(f"{open_.key}: {token} has {record.size} bytes, not {len(whole)}")
        if data is not None and data != whole[first : first + len(data)]:
            raise Violation(f"{open_.key}: wrong bytes in {len(data)} from {first} of {token}")
        self.saw(open_, tick, Need(Sort.TOKEN, token))

    def listed(self, open_: Open, tick: int, request: ListObjects, listing: Listing) -> None:
        """One page without a delimiter: says of every key in its range whether it is there."""
        shown = {entry.key: entry for entry in listing.entries if not isinstance(entry, str)}
        names = list(shown)
        if names != sorted(names, key=str.encode) or len(names) != len(listing.entries):
            raise Violation(f"a listing of {request.bucket} is not in order: {names}")
        prefix = f"{request.bucket}/"
        known = {key.removeprefix(prefix) for key in self.histories if key.startswith(prefix)}
        for key in sorted(known | shown.keys()):
            inside = key.startswith(request.prefix) and key.encode() > request.after.encode()
            if listing.truncated:
                inside = inside and key.encode() <= names[-1].encode()
            if key in shown and not inside:
                raise Violation(f"a listing of {request.bucket} shows {key!r}, which was not asked for")
            if inside:
                need = Need(Sort.ETAG, shown[key].etag) if key in shown else NOTHING
                self._add(prefix + key, Op(open_.number, open_.what, open_.began, tick, need))

    def tell(
        self,
        open_: Open,
        now: float,
        size: int,
        error: str = "",
        slack_s: float = 0.0,
        *,
        refused: bool = False,
    ) -> None:
        """How long it took and how it ended."""
        self.answered.append(Answered(open_.what, open_.key, open_.at, now, size, error, slack_s, refused))

    def check(self) -> None:
        """Raises Violation if no order of the requests explains what was seen of some key."""
        etags = {token: self._etags(token) for token in self.versions}
        for key, history in sorted(self.histories.items()):
            try:
                check(history, etags)
            except Impossible as error:
                raise Violation(f"{key}: {error}") from None
