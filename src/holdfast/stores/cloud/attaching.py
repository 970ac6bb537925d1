"""Attaching a bucket: judged as a disk is, by who lives there and who was expected.

What must hold: before anything is kept in a bucket, its provider was seen to refuse a name that is taken; a
bucket that was sealed from its first blob on is used sealed, with the key that it was begun with in the ring,
and one that was not is not; and nothing is moved into that is not empty.
"""

from msgspec import Struct

from holdfast.base.clock import Clock
from holdfast.base.errors import InvalidInput
from holdfast.base.ids import new_store_id
from holdfast.base.randomness import Randomness
from holdfast.stores.cloud.address import CloudAddress, S3Access, open_bucket
from holdfast.stores.cloud.place import Resident, look, move_in
from holdfast.stores.cloud.requests import Bucket
from holdfast.stores.cloud.store import CloudOptions, CloudStore
from holdfast.stores.identity import Expected, Found, Identity, Judgement, judge
from holdfast.stores.port import Attachment


class Sealing(Struct, frozen=True):
    """Whether a bucket is to hold ciphertext (`sealed`), and the ids of the keys, the newest last."""

    sealed: bool
    keys: tuple[str, ...] = ()


class Attached(Struct, frozen=True):
    """What attaching came to. `store` when it may be used; `identity` whenever one was found or made."""

    judgement: Judgement
    identity: Identity | None
    store: CloudStore | None


async def inspect(
    address: CloudAddress,
    access: S3Access,
    *,
    clock: Clock,
    randomness: Randomness,
    options: CloudOptions,
    timeout_s: float,
) -> Found:
    """Who lives in a bucket, without touching anything. Raises InvalidInput, StoreFailed and its like."""
    bucket = Bucket(open_bucket(address, access, clock), address, clock, randomness, options.retries)
    try:
        found, _ = await look(bucket, timeout_s)
    finally:
        bucket.close()
    return found


async def attach(
    address: CloudAddress,
    access: S3Access,
    expected: Expected,
    sealing: Sealing,
    *,
    clock: Clock,
    randomness: Randomness,
    options: CloudOptions,
    initialise: bool,
    timeout_s: float,
) -> Attached:
    """Judge a bucket and open it when it is the store that is expected. An empty one becomes that store with
    `initialise`. Raises InvalidInput (the provider writes over names, or sealing does not fit), StoreFailed
    and its like."""
    bucket = Bucket(open_bucket(address, access, clock), address, clock, randomness, options.retries)
    found, resident = await look(bucket, timeout_s)
    judgement = judge(found, expected)
    moving_in = judgement.attachment is Attachment.NEW and initialise
    if judgement.attachment is not Attachment.READY and not moving_in:
        bucket.close()
        return Attached(judgement, found.identity, None)
    if resident is None:
        key = sealing.keys[-1] if sealing.sealed else ""
        identity = Identity(new_store_id(randomness), expected.cluster, expected.slot)
        resident = Resident(identity, key)
    else:
        _check_sealing(address, resident, sealing)
    store = CloudStore.of(bucket, resident.identity, clock, randomness, options)
    await store.prove_create_only(timeout_s=timeout_s)
    if moving_in:
        await move_in(bucket, resident, timeout_s)
    return Attached(judgement, resident.identity, store)


def _check_sealing(address: CloudAddress, resident: Resident, sealing: Sealing) -> None:
    if resident.key and not sealing.sealed:
        raise InvalidInput(
            f"What lies in {address} is sealed, and is to be used as if it were not.",
            hint="Take `sealed = false` away from its [[store]].",
        )
    if not resident.key and sealing.sealed:
        raise InvalidInput(
            f"What lies in {address} is not sealed, and is to be used as if it were.",
            hint="Say `sealed = false` for its [[store]]; to have it sealed, add a store with another "
            "prefix and drain this one.",
        )
    if resident.key and resident.key not in sealing.keys:
        raise InvalidInput(
            f"What lies in {address} is sealed with key {resident.key}, which is not in the key ring.",
            hint="Put the key ring back that has it: `holdfast keys import FILE`.",
        )
