"""A bucket at a cloud, or at whatever speaks S3, as one store (docs/formats-cloud.md)."""

from holdfast.stores.cloud.address import CloudAddress, S3Access, S3Credentials, check_endpoint, parse_address
from holdfast.stores.cloud.attaching import Attached, Sealing, attach, inspect
from holdfast.stores.cloud.requests import Requests
from holdfast.stores.cloud.store import CloudOptions, CloudStore

__all__ = [
    "Attached",
    "CloudAddress",
    "CloudOptions",
    "CloudStore",
    "Requests",
    "S3Access",
    "S3Credentials",
    "Sealing",
    "attach",
    "check_endpoint",
    "inspect",
    "parse_address",
]
