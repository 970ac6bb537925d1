"""Checksums and codes: what is made in steps is what is made at once."""

import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.base.checksums import ChecksumAlgorithm, HmacSha256, feed, new_hasher


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_the_code_is_that_of_rfc_2104(key: bytes, message: bytes) -> None:
    code = HmacSha256(key)
    expected = hmac.digest(key, message, "sha256").hex()
    assert code.hexdigest(message) == expected
    assert code.hexdigest(message) == expected, "a code leaves nothing behind in its key"


def test_a_long_message_has_the_same_code() -> None:
    message = bytes(range(256)) * 40
    assert HmacSha256(b"key").hexdigest(message) == hmac.digest(b"key", message, "sha256").hex()


@pytest.mark.parametrize("size", [0, 1, 1983, 1984, 1985, 2048, 4096, 16 << 10, (16 << 10) + 1, 100_000])
@pytest.mark.parametrize("algorithm", ChecksumAlgorithm)
def test_feeding_is_updating(algorithm: ChecksumAlgorithm, size: int) -> None:
    data = hashlib.shake_128(b"data").digest(size)
    for given_as in (data, bytearray(data), memoryview(data)):
        fed, updated = new_hasher(algorithm), new_hasher(algorithm)
        feed(fed, b"before")
        updated.update(b"before")
        feed(fed, given_as)
        updated.update(data)
        assert fed.digest() == updated.digest()
