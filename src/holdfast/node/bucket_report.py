"""What a bucket is doing and what that costs, for `holdfast status` and `holdfast store list`. Pure.

Money is in what the configuration reckons in; nothing is said of it where no price is known. Costs are
those of this process since it attached the bucket: who else uses it, and what was before, is on the bill.
"""

from msgspec import Struct

from holdfast.node.config_cloud import GB, Bucket, Price
from holdfast.node.ground import Opened
from holdfast.stores.cloud import CloudStore, Requests


class BucketStatus(Struct, frozen=True, kw_only=True):
    """`trip_s` is how far away it is, in seconds, None before that was measured. `cost` is of requests and
    of what was read, `cost_a_month` of what lies there; None where no price is known."""

    endpoint: str
    bucket_region: str
    sealed: bool
    trip_s: float | None
    puts: int
    gets: int
    deletes: int
    bytes_in: int
    bytes_out: int
    cost: float | None
    cost_a_month: float | None


def bucket_status(path: object, opened: Opened | None, bytes_held: int | None) -> BucketStatus | None:
    """What is known of a store's bucket; None for one that is not attached, or no bucket."""
    if not isinstance(path, Bucket) or not isinstance(opened, CloudStore):
        return None
    asked, price = opened.requests, path.price
    held = bytes_held if bytes_held is not None else opened.bytes_used
    return BucketStatus(
        endpoint=path.endpoint,
        bucket_region=path.bucket_region,
        sealed=path.sealed,
        trip_s=opened.trip_s,
        puts=asked.puts,
        gets=asked.gets,
        deletes=asked.deletes,
        bytes_in=asked.bytes_in,
        bytes_out=asked.bytes_out,
        cost=cost_of(asked, price) if price.is_known else None,
        cost_a_month=held / GB * price.storage if price.is_known else None,
    )


def cost_of(asked: Requests, price: Price) -> float:
    """What requests cost, and the bytes that they brought out."""
    return (
        asked.puts / 1000 * price.puts + asked.gets / 1000 * price.gets + asked.bytes_out / GB * price.egress
    )


def bucket_sentence(bucket: BucketStatus) -> str:
    """For a person."""
    where = f"in {bucket.bucket_region}, " if bucket.bucket_region else ""
    far = f"{1000 * bucket.trip_s:.0f} ms away, " if bucket.trip_s is not None else ""
    sealed = "sealed" if bucket.sealed else "not sealed: its provider can read it"
    spent = f", {money(bucket.cost)} since the start" if bucket.cost is not None else ""
    rent = (
        f"; what lies there costs {money(bucket.cost_a_month)} a month"
        if bucket.cost_a_month is not None
        else ""
    )
    return (
        f"{where}{far}{sealed}; {bucket.puts} puts and lists, {bucket.gets} gets, "
        f"{bucket.bytes_out} bytes read{spent}{rent}"
    )


def money(amount: float | None) -> str:
    """With as many digits as say something."""
    if amount is None:
        return "-"
    return f"${amount:.2f}" if amount >= 1 else f"${amount:.2g}" if amount else "$0"
