"""Where a bucket is, and what opens it.

What must hold: an address that could mean two things is refused before anything is asked of anybody; and a
secret is in nothing that can be printed.
"""

import re

from msgspec import Struct
from obstore.store import S3Store

from holdfast.base.clock import Clock
from holdfast.base.errors import InvalidInput
from holdfast.stores.cloud.profiles import Profile

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]\Z")
_PREFIX = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*\Z")
_ENDPOINT = re.compile(r"https?://[A-Za-z0-9.\[\]:-]+/?\Z")
_PREFIX_BYTES_MAX = 512
_REQUEST_S_MAX = 300
_CONNECT_S = 5


class CloudAddress(Struct, frozen=True):
    """A bucket, and the folder in it that is the store's; `prefix` is empty for the whole bucket."""

    bucket: str
    prefix: str = ""

    @property
    def url(self) -> str:
        """As it is written in a configuration."""
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def __str__(self) -> str:
        return self.url


class S3Credentials(Struct, frozen=True):
    """A key pair, where it does not come from the usual places. It prints as its id alone."""

    access_key_id: str
    secret_access_key: str
    session_token: str = ""

    def __repr__(self) -> str:
        return f"S3Credentials({self.access_key_id!r})"


class S3Access(Struct, frozen=True):
    """How to come to a bucket. `endpoint` is empty for Amazon's own. `profile` names a section of the file
    that clients of Amazon keep credentials in; without it, and with `credentials` of None, they are those of
    the environment, of the container or of the instance's role."""

    region: str
    endpoint: str = ""
    credentials: S3Credentials | None = None
    profile: str = ""


def parse_address(url: str) -> CloudAddress:
    """The bucket of `s3://bucket/prefix`. Raises InvalidInput."""
    kind, separator, rest = url.partition("://")
    if not separator or kind != "s3":
        # What stands before an @ may be a secret, so that the address itself is not repeated.
        raise InvalidInput(
            "The address of a bucket does not begin with s3://.", hint="Write s3://bucket/prefix."
        )
    bucket, _, prefix = rest.partition("/")
    prefix = prefix.rstrip("/")
    if not _BUCKET.match(bucket) or ".." in bucket:
        raise InvalidInput(
            "The address of a bucket has no name of a bucket behind s3://.",
            hint="A name has 3 to 63 lower-case letters, digits, dots and hyphens.",
        )
    if prefix and (len(prefix) > _PREFIX_BYTES_MAX or not _PREFIX.match(prefix)):
        raise InvalidInput(
            f"The prefix in bucket {bucket} is none that every provider takes.",
            hint="Use letters, digits, dots, hyphens and underscores, with single slashes between folders.",
        )
    return CloudAddress(bucket, prefix)


def check_endpoint(endpoint: str) -> None:
    """Raise InvalidInput unless this is the address of a server; it is not repeated."""
    if not _ENDPOINT.match(endpoint):
        # What stands before an @ may be a secret.
        raise InvalidInput(
            "The endpoint of a bucket is no address of a server.",
            hint="Write it as https://host or https://host:port; keys do not belong there.",
        )


def open_bucket(address: CloudAddress, access: S3Access, clock: Clock) -> S3Store:
    """A client of the bucket; nothing is asked of anybody yet. It repeats nothing of its own accord: what is
    tried again, and how long, is decided in one place, by CloudStore. Raises InvalidInput."""
    if access.endpoint:
        check_endpoint(access.endpoint)
    keys = {}
    if access.credentials is not None:
        keys = {
            "access_key_id": access.credentials.access_key_id,
            "secret_access_key": access.credentials.secret_access_key,
        }
        if access.credentials.session_token:
            keys["session_token"] = access.credentials.session_token
    if access.endpoint:
        # Both: a variable of the environment for the second would have the last word.
        keys["endpoint"] = keys["aws_endpoint_url_s3"] = access.endpoint.rstrip("/")
    return S3Store(
        address.bucket,
        prefix=address.prefix or None,
        region=access.region,
        conditional_put="etag",
        credential_provider=Profile(access.profile, clock) if access.profile else None,
        client_options={
            "allow_http": access.endpoint.startswith("http://"),
            "connect_timeout": f"{_CONNECT_S}s",
            "timeout": f"{_REQUEST_S_MAX}s",
        },
        retry_config={"max_retries": 0},
        **keys,  # type: ignore[arg-type]
    )
