"""Credentials of a profile: a section of the file that Amazon's own clients keep them in.

    ~/.aws/credentials, or the file that AWS_SHARED_CREDENTIALS_FILE names

    [backup]
    aws_access_key_id = ...
    aws_secret_access_key = ...
    aws_session_token = ...             where they are lent for a while

It is read again every few minutes, so that who renews credentials need not start anything anew. What must
hold: no error repeats what is in the file.
"""

import configparser
import os
from datetime import UTC, datetime
from pathlib import Path

import obstore.store

from holdfast.base.clock import Clock
from holdfast.base.errors import InvalidInput

_VALID_S = 600
"""The client asks anew 300 s before credentials expire."""

_FILE = "AWS_SHARED_CREDENTIALS_FILE"


class Profile:
    """A provider of credentials, called by the client whenever it has none, or old ones."""

    def __init__(self, name: str, clock: Clock) -> None:
        """Raises InvalidInput where there is no such profile."""
        self._name = name
        self._clock = clock
        self._read()

    def __call__(self) -> "obstore.store.S3Credential":
        return self._read()

    def __repr__(self) -> str:
        return f"Profile({self._name!r})"

    def _read(self) -> "obstore.store.S3Credential":
        """Raises InvalidInput."""
        path = Path(os.environ.get(_FILE) or "~/.aws/credentials").expanduser()
        file = configparser.RawConfigParser()
        try:
            file.read_string(path.read_text(encoding="utf-8"))
            section = file[self._name]
            found: obstore.store.S3Credential = {
                "access_key_id": section["aws_access_key_id"],
                "secret_access_key": section["aws_secret_access_key"],
                "expires_at": datetime.fromtimestamp(self._clock.wall() + _VALID_S, UTC),
            }
        except OSError as error:
            raise self._refused(f"{path} cannot be read ({error.strerror})") from None
        except KeyError:
            raise self._refused(f"{path} has no such profile, or not both of its keys") from None
        except (configparser.Error, UnicodeDecodeError):
            raise self._refused(f"{path} is not a file of profiles") from None
        if token := section.get("aws_session_token"):
            found["token"] = token
        return found

    def _refused(self, what: str) -> InvalidInput:
        return InvalidInput(
            f"There are no credentials of profile {self._name!r}: {what}.",
            hint=f"Write aws_access_key_id and aws_secret_access_key below [{self._name}] there.",
        )
