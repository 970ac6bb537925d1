"""The names of rows that objects keep in the index, and which keys and buckets are possible.

    bucket/<name>                              what a bucket is
    head/<bucket>/<key>                        the current version of a key
    version/<bucket>/<key> NUL <order>         a noncurrent version, newest first
    upload/<bucket>/<key> NUL <upload id>      a multipart upload that is open
    part/<upload id>/<number>/<attempt>        one part as it was uploaded once
    dead/<pack>/<id>                           bytes of a pack that a version or part attempt let go
    share/<pack>/<version>                     a copy that needs bytes of a pack it does not own
    cleanup/<id>                               work left over from a completed, aborted or huge object
    rescheme/<bucket>                          packs of the bucket may have another scheme than it
    request/<id>, request/<id>/<digest>        which try of a request counts, and what earlier ones earned
    ended/<id>                                 an upload or bucket that must not come back (`ended_row`)

What must hold: rows of one bucket sort by the UTF-8 bytes of their keys, and no row's name can be read
as another's. Bucket names have no slash. Object keys may hold any Unicode but NUL: NUL ends the key
in `version` and `upload` rows (it sorts before every other byte, so a key's rows come before those of
any longer key), and XML 1.0 has no way to write it, so that no listing could ever show such a key.
"""

import re

from holdfast.base.ids import PackId, UploadId, VersionId
from holdfast.index.port import KEY_BYTES_MAX as ROW_KEY_BYTES_MAX
from holdfast.index.port import prefix_end
from holdfast.objects.errors import InvalidBucketName, InvalidKey, KeyTooLong, NoSuchBucket
from holdfast.objects.model import KEY_BYTES_MAX, PARTS_MAX

BUCKET_NAME_MAX = 63
_ORDER_LIMIT = 1 << 64
_ORDER_DIGITS = 16

BUCKETS = b"bucket/"
CLEANUPS = b"cleanup/"
RESCHEMES = b"rescheme/"
REQUESTS = b"request/"

assert len(b"version//\0") + BUCKET_NAME_MAX + KEY_BYTES_MAX + _ORDER_DIGITS <= ROW_KEY_BYTES_MAX
assert len(str(PARTS_MAX)) == 5

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]\Z")
_ADDRESS = re.compile(r"[0-9]+\.[0-9]+\.[0-9]+\.[0-9]+\Z")
_RESERVED_STARTS = ("xn--", "sthree-", "amzn-s3-demo-")
_RESERVED_ENDS = ("-s3alias", "--ol-s3", ".mrap", "--x-s3", "--table-s3")


def check_bucket_name(name: str) -> None:
    """Raises InvalidBucketName unless `name` follows the rules of S3's general purpose buckets
    (AWS, "Bucket naming rules")."""
    if not _BUCKET.match(name):
        hint = "Use 3 to 63 of a-z, 0-9, dot and hyphen; begin and end with a letter or digit."
    elif ".." in name or _ADDRESS.match(name):
        hint = "Two dots in a row and the form of an IP address are not possible."
    elif name.startswith(_RESERVED_STARTS) or name.endswith(_RESERVED_ENDS):
        hint = "It begins or ends with what S3 reserves."
    else:
        return
    raise InvalidBucketName(f"{name[:80]!r} cannot be the name of a bucket.", hint=hint, bucket=name[:80])


def encode_key(key: str) -> bytes:
    """The UTF-8 of an object's key. Raises InvalidKey or KeyTooLong."""
    try:
        encoded = key.encode()
    except UnicodeEncodeError:
        raise InvalidKey("The key is not Unicode text.", hint="Encode it as UTF-8.") from None
    if not encoded:
        raise InvalidKey("The key is empty.", hint="Name the object.")
    if len(encoded) > KEY_BYTES_MAX:
        raise KeyTooLong(
            f"The key has {len(encoded)} bytes of UTF-8;",
            hint=f"at most {KEY_BYTES_MAX} are possible.",
            size=len(encoded),
        )
    if b"\0" in encoded:
        raise InvalidKey("The key holds NUL.", hint="XML cannot show it; choose another character.")
    return encoded


def encode_text(text: str) -> bytes:
    """The UTF-8 of a prefix, delimiter or marker. Raises InvalidKey."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise InvalidKey("This is not Unicode text.", hint="Encode it as UTF-8.") from None


def bucket_row(name: str) -> bytes:
    """Key of a bucket's row. Raises NoSuchBucket for a name that no bucket can have."""
    if len(name) > BUCKET_NAME_MAX or not name.isascii():
        raise no_such_bucket(name)
    return BUCKETS + name.encode()


def no_such_bucket(name: str) -> NoSuchBucket:
    """The error that says so."""
    return NoSuchBucket(f"There is no bucket {name[:80]!r}.", bucket=name[:80])


def heads(bucket: str) -> bytes:
    """What all head rows of a bucket begin with."""
    return b"head/" + bucket.encode() + b"/"


def head_row(bucket: str, key: bytes) -> bytes:
    """Key of a head row; `key` is UTF-8 and was checked."""
    return b"head/" + bucket.encode() + b"/" + key


def versions(bucket: str) -> bytes:
    """What all rows of noncurrent versions of a bucket begin with."""
    return b"version/" + bucket.encode() + b"/"


def version_row(bucket: str, key: bytes, order: int) -> bytes:
    """Key of a noncurrent version: its order descends, so that the newest comes first."""
    assert 0 <= order < _ORDER_LIMIT
    return versions(bucket) + key + b"\0%016x" % (_ORDER_LIMIT - 1 - order)


def uploads(bucket: str) -> bytes:
    """What all rows of open uploads of a bucket begin with."""
    return b"upload/" + bucket.encode() + b"/"


def upload_row(bucket: str, key: bytes, upload: UploadId) -> bytes:
    """Key of an upload's row; `upload` is hexadecimal (`is_upload_id`)."""
    return uploads(bucket) + key + b"\0" + upload.encode()


def parse_upload_row(key: bytes) -> UploadId:
    """The upload of an upload's row."""
    return UploadId(key.rpartition(b"\0")[2].decode())


def is_upload_id(text: str) -> bool:
    """Whether `text` looks like an id that we gave: 32 lower-case hex digits."""
    return len(text) == 32 and all(digit in "0123456789abcdef" for digit in text)


def parts(upload: UploadId) -> bytes:
    """What all parts of an upload begin with."""
    return b"part/" + upload.encode() + b"/"


def part_row(upload: UploadId, number: int, attempt: VersionId) -> bytes:
    """Key of one attempt of a part."""
    assert 1 <= number <= PARTS_MAX
    return b"part/%b/%05d/%b" % (upload.encode(), number, attempt.encode())


def parse_part_row(key: bytes) -> tuple[int, VersionId]:
    """Number and attempt of a part's row."""
    _, _, number, attempt = key.split(b"/")
    return int(number), VersionId(attempt.decode())


def dead_row(pack: PackId, owner: str) -> bytes:
    """Key of the row that says that a version or part attempt let go its bytes of a pack."""
    return b"dead/%b/%b" % (pack.hex().encode(), owner.encode())


def share_row(pack: PackId, version: VersionId) -> bytes:
    """Key of the row that says that a version needs bytes of a pack that it does not own."""
    return b"share/%b/%b" % (pack.hex().encode(), version.encode())


def cleanup_row(owner: str) -> bytes:
    """Key of the work that a completed or aborted upload, or the end of a version, left over."""
    return CLEANUPS + owner.encode()


def rescheme_row(bucket: str) -> bytes:
    """Key of the mark that says that packs of a bucket may have another scheme than the bucket."""
    return RESCHEMES + bucket.encode()


def ended_row(owner: str) -> bytes:
    """Key of the row that says that an upload (by its id) or bucket (by its nonce) has ended.

    Their creation expects it to be absent. It is only left where the creation's outcome was unknown for
    a while, so that an attempt which is still on its way can never land after the end.
    """
    return b"ended/" + owner.encode()


def request_row(request: str) -> bytes:
    """Key of the row that says which try of a request counts."""
    return REQUESTS + request.encode()


def earned_row(request: str, digest: bytes) -> bytes:
    """Key of the row that says what a request earned at what the digest stands for."""
    return request_row(request) + b"/" + digest


def after_prefix(prefix: bytes) -> bytes:
    """The least row key greater than all that begin with `prefix`."""
    return prefix_end(prefix)
