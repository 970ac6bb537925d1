"""A bucket at a cloud, or at whatever speaks S3, as one store (docs/formats-cloud.md)."""

from holdfast.stores.cloud.address import CloudAddress, S3Access, S3Credentials, parse_address
from holdfast.stores.cloud.store import CloudOptions, CloudStore

__all__ = [
    "CloudAddress",
    "CloudOptions",
    "CloudStore",
    "S3Access",
    "S3Credentials",
    "parse_address",
]
