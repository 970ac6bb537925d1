"""What a provider's refusal means.

What must hold: a bucket that is gone never looks like blobs that are gone, or repair would write everything
again; and no text of a provider is passed on, because it may repeat a key, a signature or a token. What is
said is the status and the provider's code alone.
"""

import re
from enum import Enum
from typing import NamedTuple

from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)

CLIENT_ERRORS = (BaseError, FileNotFoundError)
"""All that a call of the client raises for what the world did."""

_STATUS = re.compile(r"status code: ([1-5][0-9]{2})\b")
_CODE = re.compile(r"<Code>([A-Z][a-z][A-Za-z]{1,62})</Code>")


class Trouble(Enum):
    """What to do about it."""

    MISSING = "there is no such blob"
    UNTOLD = "is not there; whether it is the blob, its bucket or the server, nobody said"
    EXISTS = "the name is taken"
    BEHIND_THE_END = "the range begins behind the end"
    THROTTLED = "asks for fewer requests"
    BROKEN = "failed; what was asked for may have been done"
    REFUSED = "does not take the credentials"
    WRONG = "does not take the request"


AGAIN = frozenset({Trouble.THROTTLED, Trouble.BROKEN})
"""What may be otherwise in a moment."""


class Failure(NamedTuple):
    """A refusal. `said` is for a person and holds nothing secret."""

    trouble: Trouble
    said: str


def judge(error: Exception) -> Failure:
    """What an error of the client means."""
    text = str(error)
    status = int(found[1]) if (found := _STATUS.search(text)) else 0
    code = found[1] if (found := _CODE.search(text)) else ""
    said = " ".join(part for part in (f"status {status}" if status else "", code) if part)
    return Failure(_trouble(error, status, code), said or "no answer")


def _trouble(error: Exception, status: int, code: str) -> Trouble:
    if code == "NoSuchBucket":
        return Trouble.WRONG
    if isinstance(error, FileNotFoundError):
        # Without the code it may be a proxy, or a server that is no store, that knows no such page.
        return Trouble.MISSING if code == "NoSuchKey" else Trouble.UNTOLD
    if isinstance(error, AlreadyExistsError | PreconditionError):
        return Trouble.EXISTS
    if isinstance(error, PermissionDeniedError | UnauthenticatedError):
        return Trouble.REFUSED
    if code in {"ExpiredToken", "InvalidAccessKeyId", "InvalidToken"}:
        return Trouble.REFUSED
    if status == 416:
        return Trouble.BEHIND_THE_END
    if status in {429, 503} or code in {"SlowDown", "RequestTimeout"}:
        return Trouble.THROTTLED
    return Trouble.WRONG if 300 <= status < 500 else Trouble.BROKEN
