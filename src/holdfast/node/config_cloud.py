"""What a node is told of a bucket that is one of its stores: where, by whom it is opened, what it costs.

What must hold: no secret is in it. So it may be written down, shown, and sent to other nodes.
"""

import re
from pathlib import Path

from msgspec import Struct

from holdfast.base.errors import InvalidInput
from holdfast.node.config_sizes import read_size
from holdfast.stores.cloud import CloudAddress, check_endpoint, parse_address

BYTES_MAX_DEFAULT = 1 << 40
BYTES_MAX_MIN = 1 << 26
GB = 1_000_000_000

_PROFILE = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")


class Price(Struct, frozen=True):
    """What a provider asks for, in dollars, or whatever money the operator reckons in: for a GB (10^9 bytes)
    kept for a month, for a thousand requests that write or list, for a thousand that read, and for a GB that
    leaves."""

    storage: float = 0.0
    puts: float = 0.0
    gets: float = 0.0
    egress: float = 0.0

    @property
    def is_known(self) -> bool:
        """Whether anything was said."""
        return self != Price()


class Bucket(Struct, frozen=True):
    """A bucket as it is configured. It stands where a store has a path: as text it is the address.

    `endpoint` is empty for Amazon's own; `bucket_region` is what requests are signed for; `profile` names
    credentials, which come from the environment without it; `sealed` says that it holds nothing but
    ciphertext; `bytes_max` is what may lie there."""

    address: CloudAddress
    endpoint: str = ""
    bucket_region: str = ""
    profile: str = ""
    sealed: bool = True
    bytes_max: int = BYTES_MAX_DEFAULT
    price: Price = Price()

    def __str__(self) -> str:
        return f"{self.address} at {self.endpoint}" if self.endpoint else str(self.address)

    def overlaps(self, other: "Bucket") -> bool:
        """Whether one lies in the other."""
        ours, theirs = f"{self.address}/", f"{other.address}/"
        return self.endpoint == other.endpoint and (ours.startswith(theirs) or theirs.startswith(ours))

    @property
    def host(self) -> str:
        """What is no other's, as a label: the name of the bucket."""
        return self.address.bucket


StorePath = Path | Bucket
"""Where a store is."""


def lines_of(path: StorePath) -> tuple[str, ...]:
    """What a configuration file says of a bucket, but for its slot and labels; nothing of a directory."""
    if isinstance(path, Path):
        return ()
    lines = [f'bucket = "{path.address}"']
    texts = {"endpoint": path.endpoint, "bucket_region": path.bucket_region, "profile": path.profile}
    lines += [f'{key} = "{value}"' for key, value in texts.items() if value]
    if path.bytes_max != BYTES_MAX_DEFAULT:
        lines.append(f"capacity = {path.bytes_max}")
    if not path.sealed:
        lines.append("sealed = false")
    if path.price.is_known:
        costs = {key: getattr(path.price, key) for key in Price.__struct_fields__}
        lines.append(f"price = {{ {', '.join(f'{key} = {value}' for key, value in costs.items())} }}")
    return tuple(lines)


def is_bucket(path: str) -> bool:
    """Whether a store's place, as text, is a bucket."""
    return "://" in path


def read_bucket(value: object) -> CloudAddress:
    """The address of a bucket."""
    if not isinstance(value, str):
        raise InvalidInput("The address of a bucket is text:", hint='as "s3://bucket/prefix".')
    return parse_address(value)


def read_price(value: object) -> float:
    """An amount of money that is no debt."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e6:
        raise InvalidInput(f"{value!r} is not a price:", hint="a number as 0.023, in dollars.")
    return float(value)


def read_endpoint(value: object) -> str:
    """The address of a server."""
    if not isinstance(value, str):
        raise InvalidInput("An endpoint is text:", hint='as "https://s3.example.org".')
    check_endpoint(value)
    return value.rstrip("/")


def read_profile(value: object) -> str:
    """The name of a section of a file."""
    if not isinstance(value, str) or not _PROFILE.match(value):
        raise InvalidInput(f"{value!r} is not the name of a profile:", hint='as "backup".')
    return value


def read_capacity(value: object) -> int:
    """Bytes that a bucket may hold. Raises InvalidInput for less than is of use."""
    size = value if isinstance(value, int) else read_size(value)
    if isinstance(value, bool) or size < BYTES_MAX_MIN:
        raise InvalidInput(f"{value!r} is too little:", hint='at least "64 MiB", as "1 TiB".')
    return size


def read_money(text: str) -> Price:
    """Four prices with commas between: storage, puts, gets, egress; those left out are nothing."""
    try:
        return Price(*(read_price(float(part)) for part in text.split(","))) if text else Price()
    except (ValueError, TypeError):
        raise InvalidInput(
            f"{text!r} are not prices:", hint="storage,puts,gets,egress, as 0.023,0.005,0.0004,0.09."
        ) from None
