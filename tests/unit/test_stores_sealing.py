"""Sealed stores: nothing readable behind, nothing changed goes unnoticed, a missing key is not damage."""

import asyncio
from collections.abc import Callable, Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from holdfast.base.checksums import Buffer, crc32c
from holdfast.base.clock import SystemClock
from holdfast.base.errors import Damaged
from holdfast.base.ids import StoreId
from holdfast.base.randomness import SeededRandomness
from holdfast.stores.memory import MemoryStore
from holdfast.stores.port import (
    Range,
    ShardMissing,
    ShardSpoiled,
    ShardTruncated,
    StoreFailed,
    StoreFull,
    StoreOverdue,
)
from holdfast.stores.sealing import KeyMissing, KeysInUse
from holdfast.stores.sealing.blob import (
    FRAME_BYTES,
    HEADER_BYTES,
    TAG_BYTES,
    open_header,
    plain_bytes,
    plain_that_fits,
    seal_blob,
    sealed_bytes,
)
from tests.kit.sealing import ring, sealed
from tests.kit.virtual import VirtualClock

T = 60.0
QUIET = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""No opinion about how long an example takes: others are at work on the machine."""

STEP = FRAME_BYTES + TAG_BYTES
LENGTH = 2 * FRAME_BYTES + 1000
BLOB = SeededRandomness("blob").token(LENGTH)
OTHER = SeededRandomness("other").token(LENGTH)


def memory(**options: int) -> MemoryStore:
    return MemoryStore(StoreId("m"), clock=SystemClock(), randomness=SeededRandomness(1), **options)


def blob_of(pieces: list[Buffer], name: str = "blob", seed: str = "data") -> bytes:
    length = sum(len(piece) for piece in pieces)
    key = ring("first").newest
    return b"".join(seal_blob(name, pieces, length, key, SeededRandomness(seed).token(32)))


def opened(name: str, found: bytes) -> bytes:
    """All of a sealed blob, opened by the book."""
    blob = open_header(name, found[:HEADER_BYTES], ring("first"))
    frames = range(max(1, -(-blob.length // FRAME_BYTES)))
    cut = [found[HEADER_BYTES + n * STEP : HEADER_BYTES + (n + 1) * STEP] for n in frames]
    return b"".join(blob.open(number, frame) for number, frame in zip(frames, cut, strict=True))


async def whole(store_behind: MemoryStore, name: str = "blob", length: int = LENGTH) -> Buffer:
    """Read by a store that has read nothing before."""
    (found,) = await sealed(store_behind).get(name, [Range(0, length)], timeout_s=T)
    return found


# What is behind


async def test_nothing_of_a_blob_can_be_read_behind() -> None:
    behind = memory()
    store = sealed(behind)
    await store.put("blob", [b"a secret text " * 5000], timeout_s=T)
    medium = behind.medium["blob"]
    assert b"secret" not in medium
    for secret in (store.ring.newest.secret, store.ring.newest.wrapping):
        assert secret not in medium


async def test_the_same_blob_is_sealed_differently_each_time() -> None:
    behind = memory()
    store = sealed(behind)
    for name in ("one", "two"):
        await store.put(name, [BLOB], timeout_s=T)
    first = behind.medium["one"]
    await store.delete("one", timeout_s=T)
    await store.put("one", [BLOB], timeout_s=T)
    again, other = behind.medium["one"], behind.medium["two"]
    assert len(first) == len(again) == len(other) == sealed_bytes(LENGTH)
    for n in range(3):
        frame = slice(HEADER_BYTES + n * STEP, HEADER_BYTES + (n + 1) * STEP)
        assert len({first[frame], again[frame], other[frame]}) == 3


def test_a_blob_lies_as_the_documentation_says() -> None:
    """Against the library alone, so that what was sealed once opens for ever."""
    import hashlib
    import hmac

    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from cryptography.hazmat.primitives.keywrap import aes_key_unwrap

    found = blob_of([BLOB], "0a.1.2")
    secret = ring("first").newest.secret

    def derived(purpose: bytes) -> bytes:
        return hmac.new(secret, purpose, hashlib.sha256).digest()

    assert found[:12] == b"HFSEALED\x01\0\0\0"
    assert found[12:28] == derived(b"holdfast sealing key id")[:16]
    assert found[28:36] == LENGTH.to_bytes(8, "little")
    cipher = AESGCM(aes_key_unwrap(derived(b"holdfast sealing wrapping key"), found[36:76]))
    assert cipher.decrypt(b"\xff" * 12, found[76:92], found[:76] + b"0a.1.2") == b""
    assert found[92:96] == crc32c(found[:92] + b"0a.1.2").to_bytes(4, "little")
    last = b"\x02\0\0\0\x01" + bytes(7)
    assert cipher.decrypt(last, found[96 + 2 * 16_400 :], found[:96] + b"0a.1.2") == BLOB[2 * 16_384 :]
    assert cipher.decrypt(bytes(12), found[96 : 96 + 16_400], found[:96] + b"0a.1.2") == BLOB[:16_384]


# Sizes and ranges


@QUIET
@given(st.integers(0, 5 * FRAME_BYTES))
def test_sizes_are_those_of_the_plain_blob(length: int) -> None:
    assert plain_bytes(sealed_bytes(length)) == length


@QUIET
@given(st.integers(-200, 5 * STEP))
def test_a_sealed_size_has_one_plain_size_or_none(size: int) -> None:
    length = plain_bytes(size)
    assert length is None or sealed_bytes(length) == size
    fits = plain_that_fits(size)
    assert fits == 0 or sealed_bytes(fits) <= size
    assert sealed_bytes(fits + 1) > size


@QUIET
@given(st.data())
def test_pieces_of_any_size_make_the_same_blob(data: st.DataObject) -> None:
    length = data.draw(st.sampled_from([0, 1, FRAME_BYTES - 1, FRAME_BYTES, FRAME_BYTES + 1, LENGTH]))
    cuts = sorted(data.draw(st.lists(st.integers(0, length), max_size=6)))
    pieces: list[Buffer] = [
        memoryview(BLOB)[start:end] for start, end in zip([0, *cuts], [*cuts, length], strict=True)
    ]
    found = blob_of(pieces)
    assert found == blob_of([BLOB[:length]])
    assert len(found) == sealed_bytes(length)
    assert opened("blob", found) == BLOB[:length]


RANGES = st.lists(
    st.integers(0, LENGTH - 1).flatmap(
        lambda offset: st.builds(Range, st.just(offset), st.integers(1, LENGTH - offset))
    ),
    min_size=1,
    max_size=6,
)


@QUIET
@given(RANGES)
def test_any_ranges_are_exact(ranges: list[Range]) -> None:
    async def read() -> None:
        store = sealed(memory())
        await store.put("blob", [BLOB], timeout_s=T)
        for uncached in (True, False, False):
            found = await store.get("blob", ranges, timeout_s=T, uncached=uncached)
            assert found == [BLOB[offset : offset + length] for offset, length in ranges]
            peeked = store.peek("blob", ranges)
            assert peeked is None or peeked == found

    asyncio.run(read())


async def test_a_range_reads_its_frames_and_no_more() -> None:
    asked: list[list[Range]] = []

    class Watched(MemoryStore):
        async def get(
            self, name: str, ranges: Sequence[Range], *, timeout_s: float, uncached: bool = False
        ) -> list[Buffer]:
            asked.append([*ranges])
            return await super().get(name, ranges, timeout_s=timeout_s, uncached=uncached)

    behind = Watched(StoreId("m"), clock=SystemClock(), randomness=SeededRandomness(1))
    store = sealed(behind)
    await store.put("blob", [BLOB], timeout_s=T)
    await store.get("blob", [Range(FRAME_BYTES + 5, 10)], timeout_s=T)
    await store.get("blob", [Range(LENGTH - 1, 1), Range(0, 1)], timeout_s=T)
    assert asked == [
        [Range(0, HEADER_BYTES)],
        [Range(HEADER_BYTES + STEP, STEP)],
        [Range(HEADER_BYTES, STEP), Range(HEADER_BYTES + 2 * STEP, 1000 + TAG_BYTES)],
    ]


async def test_what_is_said_to_be_free_can_be_put() -> None:
    for capacity in (sealed_bytes(1), 40_000, 100_123, HEADER_BYTES + 3 * STEP):
        store = sealed(memory(bytes_capacity=capacity))
        free = (await store.usage(timeout_s=T)).bytes_free
        with pytest.raises(StoreFull):
            await store.put("more", [bytes(free + 1)], timeout_s=T)
        await store.put("blob", [bytes(free)], timeout_s=T)
        assert (await store.usage(timeout_s=T)).bytes_free == 0


# What was changed behind


async def test_a_flip_of_any_byte_of_the_header_is_found() -> None:
    behind = memory()
    await sealed(behind).put("blob", [BLOB], timeout_s=T)
    for offset in range(HEADER_BYTES):
        for bit in range(8):
            behind.damage("blob", offset, 1 << bit)
            with pytest.raises(ShardSpoiled):
                await whole(behind)
            behind.damage("blob", offset, 1 << bit)
    assert await whole(behind) == BLOB


async def test_a_flip_in_any_frame_is_found_where_it_is_and_only_there() -> None:
    behind = memory()
    await sealed(behind).put("blob", [BLOB], timeout_s=T)
    total = sealed_bytes(LENGTH)
    edges = {HEADER_BYTES + n * STEP + d for n in range(3) for d in (0, 1, FRAME_BYTES - 1, FRAME_BYTES)}
    for offset in sorted({at for at in edges if at < total} | {total - 1, total - TAG_BYTES}):
        behind.damage("blob", offset, 0x10)
        hit = (offset - HEADER_BYTES) // STEP
        for number in range(3):
            store, range_ = sealed(behind), Range(number * FRAME_BYTES + 3, 20)
            if number == hit:
                with pytest.raises(ShardSpoiled):
                    await store.get("blob", [range_], timeout_s=T)
            else:
                end = range_.offset + 20
                assert await store.get("blob", [range_], timeout_s=T) == [BLOB[range_.offset : end]]
        behind.damage("blob", offset, 0x10)
    assert await whole(behind) == BLOB


async def test_a_blob_that_was_cut_anywhere_is_never_taken_for_whole() -> None:
    behind = memory()
    await sealed(behind).put("blob", [BLOB], timeout_s=T)
    full = behind.medium["blob"]
    for end in {0, 1, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + STEP, HEADER_BYTES + 2 * STEP, *range(
        HEADER_BYTES, len(full), 997
    ), len(full) - TAG_BYTES, len(full) - 1}:  # fmt: skip
        behind.spoil("blob", full[:end])
        with pytest.raises((ShardTruncated, ShardSpoiled)):
            await whole(behind)
        try:
            assert await sealed(behind).size("blob", timeout_s=T) < LENGTH
        except ShardSpoiled:
            assert plain_bytes(end) is None


async def test_an_empty_blob_cannot_be_made_of_a_full_one() -> None:
    behind = memory()
    store = sealed(behind)
    await store.put("full", [BLOB], timeout_s=T)
    await store.put("empty", [], timeout_s=T)
    assert await store.size("empty", timeout_s=T) == 0
    with pytest.raises(ShardTruncated):
        await store.get("empty", [Range(0, 1)], timeout_s=T)
    behind.spoil("full", behind.medium["full"][:HEADER_BYTES])
    with pytest.raises(ShardSpoiled):
        await store.size("full", timeout_s=T)


async def test_bytes_behind_the_end_show_in_the_size() -> None:
    behind = memory()
    store = sealed(behind)
    await store.put("blob", [BLOB], timeout_s=T)
    for more in (b"x", bytes(TAG_BYTES), bytes(STEP), bytes(3 * STEP + 5)):
        behind.spoil("blob", behind.medium["blob"] + more)
        try:
            assert await store.size("blob", timeout_s=T) > LENGTH
        except ShardSpoiled:
            continue


def frame(number: int) -> slice:
    return slice(HEADER_BYTES + number * STEP, HEADER_BYTES + (number + 1) * STEP)


SWAPS: dict[str, Callable[[bytes, bytes], bytes]] = {
    "frames in another order": lambda a, b: a[:HEADER_BYTES] + a[frame(1)] + a[frame(0)] + a[frame(2)],
    "a frame twice": lambda a, b: a[:HEADER_BYTES] + a[frame(0)] + a[frame(0)] + a[frame(2)],
    "a frame left out": lambda a, b: a[:HEADER_BYTES] + a[frame(0)] + a[frame(2)],
    "a first frame of another": lambda a, b: a[:HEADER_BYTES] + b[frame(0)] + a[HEADER_BYTES + STEP :],
    "a last frame of another": lambda a, b: a[: HEADER_BYTES + 2 * STEP] + b[frame(2)],
    "a header of another": lambda a, b: b[:HEADER_BYTES] + a[HEADER_BYTES:],
    "all of another": lambda a, b: b,
}


@pytest.mark.parametrize("other", ["other", "blob"])
@pytest.mark.parametrize("swap", SWAPS)
async def test_what_was_swapped_is_found(swap: str, other: str) -> None:
    """With another blob, and with an earlier one of the same name."""
    behind = memory()
    store = sealed(behind)
    await store.put(other, [OTHER], timeout_s=T)
    strange = behind.medium[other]
    await store.delete(other, timeout_s=T)
    await store.put("blob", [BLOB], timeout_s=T)
    behind.spoil("blob", SWAPS[swap](behind.medium["blob"], strange))
    if swap == "all of another" and other == "blob":
        # It is a right blob of this name: names are used once, so that there is no such thing.
        assert await whole(behind) == OTHER
        return
    with pytest.raises((ShardSpoiled, ShardTruncated)):
        await whole(behind)


def with_crc(name: str, header: bytes) -> bytes:
    return header[:92] + crc32c(header[:92] + name.encode()).to_bytes(4, "little")


@pytest.mark.parametrize("offset", [28, 35, 36, 50, 75, 76, 91])
async def test_who_can_make_the_checksum_fit_does_not_get_further(offset: int) -> None:
    behind = memory()
    await sealed(behind).put("blob", [BLOB], timeout_s=T)
    behind.damage("blob", offset, 1)
    medium = behind.medium["blob"]
    behind.spoil("blob", with_crc("blob", medium[:HEADER_BYTES]) + medium[HEADER_BYTES:])
    with pytest.raises(ShardSpoiled):
        await whole(behind)


async def test_a_shorter_blob_cannot_be_made_by_saying_a_shorter_length() -> None:
    """The last frame says that it is the last; the header's tag covers the length."""
    behind = memory()
    await sealed(behind).put("blob", [BLOB], timeout_s=T)
    medium = bytearray(behind.medium["blob"][: HEADER_BYTES + 2 * STEP])
    medium[28:36] = (2 * FRAME_BYTES).to_bytes(8, "little")
    behind.spoil("blob", with_crc("blob", bytes(medium[:HEADER_BYTES])) + bytes(medium[HEADER_BYTES:]))
    with pytest.raises(ShardSpoiled):
        await whole(behind, length=2 * FRAME_BYTES)


async def test_a_blob_that_was_never_sealed_is_wrong_bytes() -> None:
    behind = memory()
    await behind.put("blob", [BLOB], timeout_s=T)
    with pytest.raises(ShardSpoiled):
        await whole(behind)


async def test_a_newer_version_is_left_alone() -> None:
    behind = memory()
    await sealed(behind).put("blob", [BLOB], timeout_s=T)
    medium = behind.medium["blob"]
    header = with_crc("blob", medium[:8] + b"\x02" + medium[9:HEADER_BYTES])
    behind.spoil("blob", header + medium[HEADER_BYTES:])
    with pytest.raises(StoreFailed, match="version 2"):
        await whole(behind)


# Headers that are kept


async def test_damage_is_found_with_a_header_that_was_kept() -> None:
    behind = memory()
    store = sealed(behind)
    await store.put("blob", [BLOB], timeout_s=T)
    assert await store.get("blob", [Range(0, LENGTH)], timeout_s=T) == [BLOB]
    behind.damage("blob", HEADER_BYTES + 5, 1)
    assert store.peek("blob", [Range(0, 10)]) is None
    with pytest.raises(ShardSpoiled):
        await store.get("blob", [Range(0, 10)], timeout_s=T)
    behind.damage("blob", HEADER_BYTES + 5, 1)
    behind.damage("blob", 40, 1)
    for uncached in (True, False):
        with pytest.raises(ShardSpoiled):
            await store.get("blob", [Range(0, 10)], timeout_s=T, uncached=uncached)


async def test_an_uncached_read_takes_no_header_that_was_kept() -> None:
    behind = memory()
    store = sealed(behind)
    await store.put("blob", [BLOB], timeout_s=T)
    await store.get("blob", [Range(0, 1)], timeout_s=T)
    behind.damage("blob", 40, 1)
    with pytest.raises(ShardSpoiled):
        await store.get("blob", [Range(0, 1)], timeout_s=T, uncached=True)


async def test_a_blob_that_another_node_replaced_is_read_as_it_is_now() -> None:
    behind = memory()
    here, there = sealed(behind, seed="here"), sealed(behind, seed="there")
    await here.put("blob", [BLOB[:100]], timeout_s=T)
    await here.get("blob", [Range(0, 100)], timeout_s=T)
    await there.delete("blob", timeout_s=T)
    with pytest.raises(ShardMissing):
        await here.get("blob", [Range(0, 500)], timeout_s=T)
    await there.put("blob", [OTHER], timeout_s=T)
    assert await here.get("blob", [Range(0, LENGTH)], timeout_s=T) == [OTHER]


# Keys


async def test_new_blobs_use_the_newest_key_and_old_ones_still_open() -> None:
    behind = memory()
    store = sealed(behind, ring("old"))
    await store.put("a", [b"of old"], timeout_s=T)
    store.take(ring("old", "new"))
    await store.put("b", [b"of new"], timeout_s=T)
    for name, content in (("a", b"of old"), ("b", b"of new")):
        assert await store.get(name, [Range(0, 6)], timeout_s=T) == [content]
    await store.get("a", [Range(0, 1)], timeout_s=T)
    store.take(ring("new"))
    assert await store.get("b", [Range(0, 6)], timeout_s=T) == [b"of new"]
    assert store.peek("a", [Range(0, 1)]) is None
    with pytest.raises(KeyMissing):
        await store.get("a", [Range(0, 6)], timeout_s=T)


async def test_a_missing_key_is_a_failed_store_and_no_damage() -> None:
    behind = memory()
    await sealed(behind, ring("ours")).put("blob", [BLOB], timeout_s=T)
    stranger = sealed(behind, ring("theirs", "others"))
    with pytest.raises(StoreFailed) as caught:
        await stranger.get("blob", [Range(0, 1)], timeout_s=T)
    assert not isinstance(caught.value, Damaged)
    assert ring("ours").newest.id.hex() in str(caught.value)
    assert "key ring" in caught.value.hint
    with pytest.raises(ShardMissing):
        await stranger.get("gone", [Range(0, 1)], timeout_s=T)


async def test_the_keys_in_use_are_counted_page_by_page() -> None:
    behind = memory()
    store = sealed(behind, ring("a"))
    for number in range(5):
        await store.put(f"a{number}", [b"x"], timeout_s=T)
    store.take(ring("a", "b"))
    for number in range(12):
        await store.put(f"b{number}", [b"x"], timeout_s=T)
    count = KeysInUse(behind)
    a, b, c = (ring(seed).newest.id.hex() for seed in "abc")
    steps = 0
    while not count.done:
        assert not count.may_leave(c)
        await count.step(limit=3, timeout_s=T)
        steps += 1
    assert steps == 7
    assert (count.blobs, count.spoiled) == ({a: 5, b: 12}, 0)
    assert count.may_leave(c)
    assert not count.may_leave(a)


async def test_no_key_may_leave_while_a_header_cannot_be_read() -> None:
    behind = memory()
    store = sealed(behind)
    await store.put("good", [b"x"], timeout_s=T)
    await store.put("spoiled", [b"x"], timeout_s=T)
    behind.damage("spoiled", 3, 1)
    count = KeysInUse(behind)
    while not count.done:
        await count.step(limit=10, timeout_s=T)
    assert (sum(count.blobs.values()), count.spoiled) == (1, 1)
    assert not count.may_leave(ring("other").newest.id.hex())


async def test_a_count_that_fails_can_go_on() -> None:
    behind = memory()
    await sealed(behind).put("blob", [b"x"], timeout_s=T)
    count = KeysInUse(behind)
    await behind.close()
    with pytest.raises(StoreFailed):
        await count.step(limit=10, timeout_s=T)
    assert not count.done
    behind.reopen()
    await count.step(limit=10, timeout_s=T)
    await count.step(limit=10, timeout_s=T)
    assert sum(count.blobs.values()) == 1
    assert count.done


# Time


@pytest.mark.virtual
async def test_both_requests_of_a_read_share_its_time() -> None:
    behind = MemoryStore(
        StoreId("m"), clock=VirtualClock(), randomness=SeededRandomness(1), latency_s=(0.4, 0.4)
    )
    store = sealed(behind, clock=VirtualClock())
    await store.put("blob", [BLOB], timeout_s=T)
    clock = VirtualClock()
    began = clock.monotonic()
    with pytest.raises(StoreOverdue):
        await store.get("blob", [Range(0, 1)], timeout_s=0.6)
    assert clock.monotonic() - began == pytest.approx(0.6)
    assert await store.get("blob", [Range(0, 1)], timeout_s=0.9) == [BLOB[:1]]
    assert await store.get("blob", [Range(0, 1)], timeout_s=0.5) == [BLOB[:1]]
