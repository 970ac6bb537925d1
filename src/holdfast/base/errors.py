"""Errors, sorted by what the caller must do.

Six kinds and no more. A room may subclass a kind to say something that its callers tell apart (a
missing shard, a full store), but whoever does not know the subclass still knows from the kind what
to do. Each error carries a sentence for a person, a hint what to do about it, and its facts as fields.
Mapped in exactly two places: to S3 codes (`holdfast.s3`), to exit codes (`holdfast.cli`).

    Busy          try again, the same request may succeed       (conflict, overload, time-out)
    InvalidInput  fix the request or the configuration          (bad name, digest, file)
    Fenced        stop: somebody newer has taken over           (stale epoch, foreign disk)
    Unavailable   parts are missing; wait or bring them back    (too few stores, index majority away)
    Damaged       bytes that cannot be corrected                (more than m shards wrong)
    Bug           our own mistake; report it
"""

from typing import ClassVar


class HoldfastError(Exception):
    """The root of all errors that are ours. `facts` are for logs and JSON, values of simple types."""

    exit_code: ClassVar[int] = 70

    def __init__(self, message: str, *, hint: str = "", **facts: object) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.facts = facts

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".rstrip() if self.hint else self.message


class Busy(HoldfastError):
    """Try again: nothing is wrong that time does not mend."""

    exit_code = 75


class InvalidInput(HoldfastError):
    """The request, file or option is wrong; the same again will fail again."""

    exit_code = 64


class Fenced(HoldfastError):
    """Someone newer has taken over, or this part belongs elsewhere. Stop using it."""

    exit_code = 76


class Unavailable(HoldfastError):
    """Too many parts are missing to go on. Nothing was acknowledged."""

    exit_code = 69


class Damaged(HoldfastError):
    """Stored bytes are wrong and could not be corrected from redundancy."""

    exit_code = 65


class Bug(HoldfastError):
    """An invariant of ours does not hold."""

    exit_code = 70
