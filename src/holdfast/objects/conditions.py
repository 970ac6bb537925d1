"""Conditional requests, as pure functions of what the client said and what is there.

Precedence is RFC 9110 section 13.2.2, which is what AWS documents for GetObject: If-Match outranks
If-Unmodified-Since, If-None-Match outranks If-Modified-Since. ETags match when they are equal (S3 has
strong ones only) or the client sent `*`. Dates have a resolution of a second, so an object's time is
cut to one before it is compared.
"""

from holdfast.objects.errors import NoSuchKey, NotModified, PreconditionFailed
from holdfast.objects.model import NO_CONDITIONS, Conditions, VersionRecord


def check_read(conditions: Conditions, record: VersionRecord) -> None:
    """Whether a GET or HEAD of `record` goes on. Raises PreconditionFailed or NotModified."""
    if conditions is NO_CONDITIONS:
        return
    if failed := _failed(conditions, record):
        raise PreconditionFailed(f"{failed} does not hold.", condition=failed)
    if _unchanged(conditions, record):
        raise NotModified("The object is as you know it.", etag=record.etag, modified_ms=record.modified_ms)


def check_source(conditions: Conditions, record: VersionRecord) -> None:
    """Whether a copy from `record` goes on. Raises PreconditionFailed, whatever the condition."""
    if conditions is NO_CONDITIONS:
        return
    failed = _failed(conditions, record) or _unchanged(conditions, record)
    if failed:
        raise PreconditionFailed(f"{failed} does not hold for the source.", condition=failed)


def check_write(conditions: Conditions, current: VersionRecord | None, key: str) -> None:
    """Whether a write over `current` goes on. Raises PreconditionFailed, or NoSuchKey for an If-Match
    where nothing is (AWS, "Conditional writes")."""
    if conditions is NO_CONDITIONS:
        return
    if current is None:
        if conditions.if_match is not None:
            raise NoSuchKey(
                f"There is no object {key!r} for If-Match to match.", key=key, condition="If-Match"
            )
        return
    failed = _failed(conditions, current)
    if not failed and conditions.if_none_match is not None and _matches(conditions.if_none_match, current):
        failed = "If-None-Match"
    if failed:
        raise PreconditionFailed(f"{failed} does not hold.", condition=failed)


def is_conditional(conditions: Conditions) -> bool:
    """Whether anything was asked for."""
    return conditions is not NO_CONDITIONS and conditions != NO_CONDITIONS


def _matches(etags: tuple[str, ...], record: VersionRecord) -> bool:
    return "*" in etags or record.etag in etags


def _second(milliseconds: int) -> int:
    return milliseconds // 1000


def _failed(conditions: Conditions, record: VersionRecord) -> str:
    """The precondition that does not hold, or nothing."""
    if conditions.if_match is not None:
        return "" if _matches(conditions.if_match, record) else "If-Match"
    since = conditions.if_unmodified_since_ms
    if since is not None and _second(record.modified_ms) > _second(since):
        return "If-Unmodified-Since"
    return ""


def _unchanged(conditions: Conditions, record: VersionRecord) -> str:
    """The condition by which the client has this state already, or nothing."""
    if conditions.if_none_match is not None:
        return "If-None-Match" if _matches(conditions.if_none_match, record) else ""
    since = conditions.if_modified_since_ms
    if since is not None and _second(record.modified_ms) <= _second(since):
        return "If-Modified-Since"
    return ""
