"""What is made of a secret: the vector of RFC 5869, and that purposes do not meet. How it changes."""

import msgspec
import pytest

from holdfast.base.errors import InvalidInput
from holdfast.base.randomness import SeededRandomness
from holdfast.cluster.claiming import checks_to_write, claim
from holdfast.cluster.rows import CLUSTER_ROW, FORMAT, ClusterRow, decode, encode
from holdfast.cluster.secret import CHECK_BYTES, check_of, derive, split_secrets
from holdfast.index.memory import MemoryIndex
from holdfast.index.port import Transaction
from tests.kit.virtual import VirtualClock


@pytest.mark.parametrize(
    ("salt", "purpose", "made"),
    [
        # RFC 5869, A.3
        (b"", "", "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"),
    ],
)
def test_it_is_hkdf(salt: bytes, purpose: str, made: str) -> None:
    assert derive(bytes([0x0B] * 22), salt, purpose, 42).hex() == made


def test_purposes_and_clusters_have_bytes_of_their_own() -> None:
    secret = b"s" * 32
    assert len(check_of(secret, "holdfast-1")) == CHECK_BYTES
    assert check_of(secret, "holdfast-1") == check_of(secret, "holdfast-1")
    found = {
        check_of(secret, "holdfast-1"),
        check_of(secret, "holdfast-2"),
        check_of(secret + b"!", "holdfast-1"),
        derive(secret, b"holdfast-1", "something else", CHECK_BYTES),
    }
    assert len(found) == 4
    assert derive(secret, b"", "p", 100)[:40] == derive(secret, b"", "p", 40)


OLD, NEW, OTHER = b"o" * 32, b"n" * 32, b"x" * 32


def test_a_file_names_one_secret_or_two() -> None:
    assert split_secrets(OLD + b"\n") == (OLD,)
    assert split_secrets(b"\n %b \r\nalso %b\n\n" % (NEW, OLD)) == (NEW, OLD)
    # As they could be before there was a second one: base64 of 64 bytes has two lines.
    assert split_secrets(b"a" * 76 + b"\n" + b"b" * 12 + b"\n") == (b"a" * 76 + b"\n" + b"b" * 12,)
    assert split_secrets(OLD + b"\nalso " + OLD) == (OLD,)
    assert len(split_secrets(OLD + b"\nalso " + NEW + b"\nalso " + OTHER)) == 3


class ClusterOfSecrets:
    """An index with a cluster's row in it."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.index = MemoryIndex(self.clock)

    async def comes(self, *secrets: bytes) -> str:
        """A node that knows these."""
        return await claim(
            self.index,
            secrets,
            known="",
            known_incarnation="",
            incarnations=[],
            clock=self.clock,
            randomness=SeededRandomness("claim"),
        )

    async def lets_in(self, secret: bytes) -> bool:
        """Whether a node is let in that knows only this one; without any change to the row."""
        (row,) = await self.index.get([CLUSTER_ROW])
        assert row is not None
        found = decode(ClusterRow, row.value)
        return checks_to_write(found, [check_of(secret, found.cluster)]) is not None


@pytest.mark.virtual
async def test_the_row_lets_both_secrets_in_until_a_node_has_one_alone() -> None:
    cluster = ClusterOfSecrets()
    name = await cluster.comes(OLD)
    assert [await cluster.lets_in(one) for one in (OLD, NEW, OTHER)] == [True, False, False]
    for _ in range(2):
        assert await cluster.comes(NEW, OLD) == name
        assert [await cluster.lets_in(one) for one in (OLD, NEW, OTHER)] == [True, True, False]
    assert await cluster.comes(NEW) == name
    assert [await cluster.lets_in(one) for one in (OLD, NEW, OTHER)] == [False, True, False]
    with pytest.raises(InvalidInput, match="is not that of cluster"):
        await cluster.comes(OLD)
    # The last one that still knows both, and then it, too, lets the old one go.
    await cluster.comes(NEW, OLD)
    await cluster.comes(NEW)
    assert [await cluster.lets_in(one) for one in (OLD, NEW)] == [False, True]


@pytest.mark.virtual
async def test_a_node_that_has_the_old_one_alone_can_start_until_the_end_and_take_it_back() -> None:
    cluster = ClusterOfSecrets()
    await cluster.comes(OLD)
    await cluster.comes(NEW, OLD)
    await cluster.comes(OLD)
    await cluster.comes(OLD, NEW)
    assert await cluster.lets_in(NEW)


@pytest.mark.virtual
async def test_a_cluster_can_begin_with_two() -> None:
    cluster = ClusterOfSecrets()
    await cluster.comes(NEW, OLD)
    assert [await cluster.lets_in(one) for one in (OLD, NEW, OTHER)] == [True, True, False]


@pytest.mark.virtual
async def test_a_row_of_before_is_read() -> None:
    cluster = ClusterOfSecrets()
    made = encode(ClusterRow(FORMAT, "holdfast-1", check_of(OLD, "holdfast-1"), 1))
    before = msgspec.msgpack.encode(msgspec.msgpack.decode(made)[:4])
    await cluster.index.commit([Transaction((), ((CLUSTER_ROW, before),))])
    assert await cluster.comes(NEW, OLD) == "holdfast-1"
    assert await cluster.lets_in(NEW)
