"""What can go wrong with buckets and objects, each mapped to one S3 code by the S3 face."""

from holdfast.base.errors import Busy, InvalidInput


class NoSuchBucket(InvalidInput):
    """404 NoSuchBucket."""


class NoSuchKey(InvalidInput):
    """404 NoSuchKey."""


class NoSuchVersion(InvalidInput):
    """404 NoSuchVersion."""


class NoSuchUpload(InvalidInput):
    """404 NoSuchUpload."""


class BucketAlreadyOwnedByYou(InvalidInput):
    """409."""


class BucketNotEmpty(InvalidInput):
    """409."""


class InvalidBucketName(InvalidInput):
    """400."""


class KeyTooLong(InvalidInput):
    """400 KeyTooLongError: more than 1,024 bytes of UTF-8."""


class InvalidKey(InvalidInput):
    """400 InvalidURI: an empty key, one with NUL, or text that is not Unicode."""


class MetadataTooLarge(InvalidInput):
    """400: more than 2 KiB of user metadata."""


class EntityTooLarge(InvalidInput):
    """400: more than 5 GiB in one request, or 5 TiB in one object."""


class EntityTooSmall(InvalidInput):
    """400: a part other than the last is smaller than 5 MiB. Facts: `part`, its `size` and `etag`, and the
    least `size_min`."""


class IncompleteBody(InvalidInput):
    """400: the body ended before its announced length."""


class BadDigest(InvalidInput):
    """400: the body does not have the MD5 or checksum that the client sent. Fact `digest` names it."""


class InvalidPart(InvalidInput):
    """400: a part that was never uploaded, or with another ETag or checksum."""


class InvalidPartOrder(InvalidInput):
    """400: part numbers that do not ascend."""


class InvalidPartNumber(InvalidInput):
    """400 InvalidArgument: outside 1 to 10,000; 416 InvalidPartNumber on reads."""


class PreconditionFailed(InvalidInput):
    """412; fact `condition` is the header's name."""


class NotModified(InvalidInput):
    """304; carries `etag` and `modified_ms` as facts."""


class InvalidRange(InvalidInput):
    """416; fact `size` is the object's length."""


class InvalidRequest(InvalidInput):
    """400 InvalidRequest: parts of a request contradict each other or the upload they belong to."""


class ConditionalConflict(Busy):
    """409 ConditionalRequestConflict: a conditional write met another write; try again."""


class TooBusy(Busy):
    """503 SlowDown: the node has as much under way as it has memory for."""
