"""What is made of a secret: the vector of RFC 5869, and that purposes do not meet."""

import pytest

from holdfast.cluster.secret import CHECK_BYTES, check_of, derive


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
