"""Silent corruption of the small files: who a store is, which stores belong together, the credentials, where
the node listens. Every byte, every bit, every length: what is read is what was written, or nothing, or an
error that says so; never something else.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from holdfast.base.errors import Damaged, HoldfastError, InvalidInput
from holdfast.base.ids import StoreId
from holdfast.base.randomness import SeededRandomness
from holdfast.node import cluster as cluster_file
from holdfast.node import credentials as credentials_file
from holdfast.node import runtime as runtime_file
from holdfast.node.cluster import Cluster, Slot, read_cluster, write_cluster
from holdfast.node.credentials import find, obtain
from holdfast.node.runtime import DataLock, Runtime, read_runtime
from holdfast.stores.identity import Identity, Noted, decode_identity, encode_identity
from tests.kit.harm import Harm, harmed

IDENTITY = Identity(StoreId("0f4c9b62-51a3-4a51-9a0e-3d2b8b1f4c11"), "holdfast-aa", "disk1", Noted("i", 77))
CLUSTER = Cluster(
    "holdfast-aa",
    {
        "disk1": Slot("/data/disk1", IDENTITY.store, Noted("i", 70), "disk-sda"),
        "disk2": Slot("/data/ünïcode", StoreId("other"), None, "disk-sdb"),
    },
    index=("disk1", "disk2"),
    incarnation="i",
)
RUNTIME = Runtime("http://127.0.0.1:9000", "us-east-1", 4711, 1_790_000_000.25)


def spoiled(content: bytes) -> Iterator[bytes]:
    """Every bit of it flipped, every byte zeroed, every length, more than there was."""
    for at in range(len(content)):
        for bit in range(8):
            yield content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]
        for harm in (Harm.ZERO, Harm.TRUNCATE):
            found = harmed(content, harm, at, at + 1)
            assert found is not None
            yield found
    yield content + content
    yield content + b"\0"


def check(
    content: bytes, written: object, read: Callable[[bytes], object], *errors: type[HoldfastError]
) -> None:
    """Nothing but what was written, or one of the errors."""
    assert read(content) == written
    told = 0
    for raw in spoiled(content):
        try:
            found = read(raw)
        except errors:
            told += 1
        else:
            assert found in (written, None), raw
    assert not errors or told > len(content)


def test_the_identity_of_a_store() -> None:
    check(encode_identity(IDENTITY), IDENTITY, decode_identity, Damaged)


def test_which_stores_belong_together(tmp_path: Path) -> None:
    path = tmp_path / cluster_file.FILE_NAME

    def read(raw: bytes) -> Cluster | None:
        path.write_bytes(raw)
        return read_cluster(tmp_path)

    write_cluster(tmp_path, CLUSTER)
    check(path.read_bytes(), CLUSTER, read, Damaged)


def test_credentials(tmp_path: Path) -> None:
    path = tmp_path / credentials_file.FILE_NAME
    made = obtain(tmp_path, {}, SeededRandomness(1))

    def read(raw: bytes) -> object:
        path.write_bytes(raw)
        return find(tmp_path, {})

    check(path.read_bytes(), made, read, InvalidInput)


def test_credentials_that_a_person_wrote_need_no_checksum(tmp_path: Path) -> None:
    path = tmp_path / credentials_file.FILE_NAME
    path.touch(0o600)
    path.write_text('{"access_key_id": "mine", "secret_access_key": "a secret of mine"}')
    found = find(tmp_path, {})
    assert found is not None
    assert found.access_key_id == "mine"


def test_where_a_node_listens(tmp_path: Path) -> None:
    path = tmp_path / runtime_file.RUNTIME_NAME
    lock = DataLock(tmp_path)
    lock.publish(RUNTIME)

    def read(raw: bytes) -> object:
        path.write_bytes(raw)
        return read_runtime(tmp_path)

    check(path.read_bytes(), RUNTIME, read)
    lock.release()


@pytest.mark.parametrize("content", [b"", b"\0" * 64, b"4711", b"\xff" * 5000])
def test_what_stands_in_a_lock_is_no_matter(tmp_path: Path, content: bytes) -> None:
    (tmp_path / runtime_file.LOCK_NAME).write_bytes(content)
    lock = DataLock(tmp_path)
    lock.publish(RUNTIME)
    assert read_runtime(tmp_path) == RUNTIME
    lock.release()
