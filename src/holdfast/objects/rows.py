"""The rows that objects keep in the index: types and encoding.

All are msgpack arrays that begin with a format number; fields are only added at the end, with
defaults. What must hold: `decode(encode(row)) == row`, and a row of a format that this program does
not know is refused, never half understood. Layouts are in `docs/formats.md`.
"""

from enum import Enum
from typing import NamedTuple, TypeVar

import msgspec
from msgspec import Raw, Struct

from holdfast.base.checksums import ChecksumAlgorithm
from holdfast.base.errors import Damaged
from holdfast.base.ids import UploadId, VersionId
from holdfast.objects.model import Checksum, ContentHeaders, VersionRecord
from holdfast.packs.model import Extent, Receipt
from holdfast.scheme import Scheme

FORMAT = 1

REMEMBERED_MAX = 4
"""How many results a head row remembers, that of the current version included."""


class BucketState(Enum):
    """A bucket that is being deleted still exists; whoever writes to it makes it active again."""

    ACTIVE = 0
    DELETING = 1


class BucketRow(Struct, frozen=True, array_like=True):
    """`bucket/<name>`. `nonce` tells two buckets of one name apart; `unsure` says that its end
    has to leave an `ended` row; `survive` is what it was told to survive, in words, empty for nothing."""

    format: int
    created_ms: int
    scheme: Scheme
    region: str
    nonce: str
    state: BucketState = BucketState.ACTIVE
    unsure: bool = False
    survive: str = ""


class Remembered(Struct, frozen=True, array_like=True):
    """The result of a write that is not current any more, for whoever asks again."""

    request: str
    version: VersionId
    etag: str
    checksum: Checksum | None
    size: int
    modified_ms: int


class HeadRow(Struct, frozen=True, array_like=True):
    """`head/<bucket>/<key>`. `order` is that of the newest version; `request` is what made the
    current one, and `earlier` are the results before it, newest first."""

    format: int
    order: int
    current: VersionRecord
    request: str
    earlier: tuple[Remembered, ...] = ()


class _HeadToWrite(Struct, frozen=True, array_like=True):
    """A HeadRow whose record is encoded already: the pack's manifest holds the same bytes."""

    format: int
    order: int
    current: Raw
    request: str
    earlier: tuple[Remembered, ...]


class ListedRecord(Struct, frozen=True, array_like=True):
    """The beginning of a VersionRecord, with what a listing does not need left encoded."""

    version: Raw
    order: Raw
    size: int
    etag: str
    modified_ms: int
    headers: Raw
    metadata: Raw
    checksum: Checksum | None
    extents: Raw
    extents_at: Raw
    parts: Raw
    storage_class: str = "STANDARD"


class ListedHead(Struct, frozen=True, array_like=True):
    """The beginning of a HeadRow, for listings."""

    format: int
    order: int
    current: ListedRecord


class UploadRow(Struct, frozen=True, array_like=True):
    """`upload/...`: a multipart upload that is open. It changes only when it ends, or when somebody
    moves the bytes of one of its parts; so its revision stands for all its parts. `unsure` says that its
    end has to leave an `ended` row."""

    format: int
    started_ms: int
    algorithm: ChecksumAlgorithm | None
    full_object: bool
    headers: ContentHeaders
    metadata: tuple[tuple[str, str], ...]
    storage_class: str
    scheme: Scheme
    unsure: bool = False


class PartRow(Struct, frozen=True, array_like=True):
    """`part/...`: one attempt of a part. Only its extents ever change, when its bytes are moved. Of several
    attempts the one that came last counts: by `arrived`, the revision of its row before it was first
    moved, else by the revision that the row has."""

    format: int
    upload: UploadId
    size: int
    md5: bytes
    checksum: Checksum
    modified_ms: int
    extents: tuple[Extent, ...]
    receipt: Receipt | None = None
    arrived: int = 0


class DeadRow(Struct, frozen=True, array_like=True):
    """`dead/...`: `size` bytes of the pack are not needed any more; `cause` names what let them go (a
    version, a deletion, a cleanup). It lives as long as its pack: see `docs/formats.md`."""

    format: int
    size: int
    cause: str


class ShareRow(Struct, frozen=True, array_like=True):
    """`share/...`: who needs the pack, so that whoever moves its bytes finds the row to change."""

    format: int
    bucket: str
    key: str


class CleanupRow(Struct, frozen=True, array_like=True):
    """`cleanup/...`: either the parts of `upload`, of which `chosen` (16 bytes each) live on in
    a version, or the bytes that the table `extents_at` of `version` names, from entry `done` on. `bucket` and
    `key` are whose they were: the manifests of their packs name them. (Rows of before that do not say.)"""

    format: int
    cause: str
    upload: UploadId | None = None
    chosen: bytes = b""
    version: VersionId | None = None
    extents_at: Extent | None = None
    shared: bool = False
    done: int = 0
    bucket: str = ""
    key: str = ""


class RequestRow(Struct, frozen=True, array_like=True):
    """`request/<id>`: tries of the request before the one numbered `tries` can do nothing any more.
    `request/<id>/<digest>`: the request wrote there with `result`, or, without one, ended what was there."""

    format: int
    tries: int = 0
    result: Remembered | None = None


class Encoded(NamedTuple):
    """A version record with its encoding."""

    record: VersionRecord
    raw: bytes


_encode = msgspec.msgpack.Encoder().encode
_record = msgspec.msgpack.Decoder(VersionRecord)
_bucket = msgspec.msgpack.Decoder(BucketRow)
_head = msgspec.msgpack.Decoder(HeadRow)
_listed = msgspec.msgpack.Decoder(ListedHead)
_upload = msgspec.msgpack.Decoder(UploadRow)
_part = msgspec.msgpack.Decoder(PartRow)
_dead = msgspec.msgpack.Decoder(DeadRow)
_share = msgspec.msgpack.Decoder(ShareRow)
_cleanup = msgspec.msgpack.Decoder(CleanupRow)
_request = msgspec.msgpack.Decoder(RequestRow)

_StoredRow = BucketRow | HeadRow | UploadRow | PartRow | DeadRow | ShareRow | CleanupRow | RequestRow
_T = TypeVar(
    "_T", BucketRow, HeadRow, ListedHead, UploadRow, PartRow, DeadRow, ShareRow, CleanupRow, RequestRow
)


def encode(row: _StoredRow) -> bytes:
    """Any row, as the index holds it."""
    return _encode(row)


def encode_record(record: VersionRecord) -> Encoded:
    """A version record, encoded once for the manifest and the head row."""
    return Encoded(record, _encode(record))


def decode_record(raw: bytes) -> VersionRecord:
    """A version record as a manifest holds it: an extent without a pack id lies in that very pack."""
    try:
        return _record.decode(raw)
    except msgspec.MsgspecError as error:
        raise Damaged(f"A version record cannot be read: {error}.") from error


def encode_head(encoded: Encoded, request: str, earlier: tuple[Remembered, ...]) -> bytes:
    """A head row around a record that is encoded already."""
    return _encode(_HeadToWrite(FORMAT, encoded.record.order, Raw(encoded.raw), request, earlier))


def _decode(decoder: "msgspec.msgpack.Decoder[_T]", value: bytes) -> _T:
    try:
        row = decoder.decode(value)
    except msgspec.MsgspecError as error:
        raise Damaged(
            f"An index row cannot be read: {error}.",
            hint="A newer Holdfast may have written it, or the index is damaged.",
        ) from error
    if row.format != FORMAT:
        raise Damaged(
            f"An index row has format {row.format}; this program knows {FORMAT}.",
            hint="Use a newer Holdfast.",
        )
    return row


def decode_bucket(value: bytes) -> BucketRow:
    """Raises Damaged, as all of these."""
    return _decode(_bucket, value)


def decode_head(value: bytes) -> HeadRow:
    """A head row, whole."""
    return _decode(_head, value)


def decode_listed(value: bytes) -> ListedHead:
    """What a listing needs of a head row."""
    return _decode(_listed, value)


def decode_upload(value: bytes) -> UploadRow:
    """An open upload."""
    return _decode(_upload, value)


def decode_part(value: bytes) -> PartRow:
    """An attempt of a part."""
    return _decode(_part, value)


def decode_dead(value: bytes) -> DeadRow:
    """What was let go."""
    return _decode(_dead, value)


def decode_share(value: bytes) -> ShareRow:
    """Who shares."""
    return _decode(_share, value)


def decode_cleanup(value: bytes) -> CleanupRow:
    """Work left over."""
    return _decode(_cleanup, value)


def decode_request(value: bytes) -> RequestRow:
    """Which try counts, or what one earned."""
    return _decode(_request, value)


def remember(head: HeadRow) -> tuple[Remembered, ...]:
    """What a head row that replaces `head` remembers of it."""
    current = head.current
    newest = Remembered(
        head.request, current.version, current.etag, current.checksum, current.size, current.modified_ms
    )
    return (newest, *head.earlier[: REMEMBERED_MAX - 2])
