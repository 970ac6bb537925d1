"""Key rings: keys know their ids, files are refused rather than half believed, and nothing shows a key."""

import json
from pathlib import Path

import pytest

from holdfast.base.checksums import crc32c
from holdfast.base.errors import InvalidInput
from holdfast.base.randomness import SeededRandomness
from holdfast.stores.sealing import Key, KeyRing, change_ring, create_ring, read_ring
from holdfast.stores.sealing.keys import KEYS_MAX, decode_ring, encode_ring
from tests.kit.sealing import ring

CHANCE = SeededRandomness("ring")


def ids(keys: KeyRing) -> list[str]:
    return [key.id.hex() for key in keys.keys]


def test_a_ring_comes_back_as_it_was_written() -> None:
    found = decode_ring(encode_ring(ring("a", "b", "c")), "ring")
    assert [key.secret for key in found.keys] == [key.secret for key in ring("a", "b", "c").keys]
    assert found.newest.id == ring("c").newest.id


def test_no_flip_of_a_bit_in_a_ring_is_taken() -> None:
    """White space apart, which means nothing."""
    raw = encode_ring(ring("a", "b"))
    secrets = [key.secret for key in ring("a", "b").keys]
    for offset in range(len(raw)):
        for bit in range(8):
            spoiled = bytearray(raw)
            spoiled[offset] ^= 1 << bit
            try:
                found = decode_ring(bytes(spoiled), "ring")
            except InvalidInput:
                continue
            assert chr(raw[offset]).isspace()
            assert [key.secret for key in found.keys] == secrets


def test_no_ring_that_was_cut_is_taken() -> None:
    raw = encode_ring(ring("a", "b")).rstrip()
    for end in range(len(raw)):
        with pytest.raises(InvalidInput):
            decode_ring(raw[:end], "ring")


def written(**changes: object) -> bytes:
    """A ring's file with other fields and a checksum that fits them."""
    content = json.loads(encode_ring(ring("a", "b")))
    del content["crc32c"]
    content |= changes
    body = json.dumps(content, separators=(",", ":")).encode()
    return json.dumps(content | {"crc32c": f"{crc32c(body):08x}"}).encode()


def test_what_is_wrong_with_a_ring_is_said_without_its_keys() -> None:
    a, b = json.loads(encode_ring(ring("a", "b")))["keys"]
    wrong = {
        "is no key ring": written(kind="something"),
        "has format 2": written(format=2),
        "cannot be read": written(extra=1),
        "has 0 keys": written(keys=[]),
        "a key twice": written(keys=[a, a]),
        "not the one its id says": written(keys=[a | {"id": b["id"]}]),
        "hex digits": written(keys=[a | {"key": a["key"].upper()}]),
        "no checksum": b'{"kind":"holdfast-key-ring","format":1,"keys":' + json.dumps([a]).encode() + b"}",
    }
    assert decode_ring(written(), "ring")
    for what, raw in wrong.items():
        with pytest.raises(InvalidInput, match=what) as caught:
            decode_ring(raw, "ring")
        assert a["key"] not in str(caught.value)


def test_keys_do_not_show() -> None:
    keys = ring("a")
    for text in (repr(keys), repr(keys.newest), str(keys)):
        assert keys.newest.secret.hex() not in text
        assert repr(keys.newest.secret) not in text


def test_a_new_key_is_the_newest_and_the_newest_stays() -> None:
    keys = ring("a").rotated(CHANCE)
    assert ids(keys)[0] == ids(ring("a"))[0]
    assert len(set(ids(keys))) == 2
    assert ids(keys.without(keys.keys[0].id)) == [keys.newest.id.hex()]
    for id in (keys.newest.id, b"unknown"):
        with pytest.raises(InvalidInput):
            keys.without(id)
    full = KeyRing(tuple(Key(number.to_bytes(32, "little")) for number in range(KEYS_MAX)))
    with pytest.raises(InvalidInput):
        full.rotated(CHANCE)


def test_a_full_ring_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    create_ring(path, CHANCE)
    full = KeyRing(tuple(Key(number.to_bytes(32, "little")) for number in range(KEYS_MAX)))
    change_ring(path, lambda _: full, CHANCE)
    assert ids(read_ring(path)) == ids(full)


def test_a_ring_file_is_its_owners_alone_and_changes_whole(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    made = create_ring(path, CHANCE)
    assert path.stat().st_mode & 0o777 == 0o600
    assert ids(read_ring(path)) == ids(made)
    changed = change_ring(path, lambda keys: keys.rotated(CHANCE), CHANCE)
    assert ids(read_ring(path)) == ids(changed)
    assert ids(changed)[0] == ids(made)[0]
    assert path.stat().st_mode & 0o777 == 0o600
    assert sorted(each.name for each in tmp_path.iterdir()) == [".keys.json.lock", "keys.json"]


def test_a_ring_is_never_made_over_one_that_is_there(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    made = create_ring(path, CHANCE)
    with pytest.raises(InvalidInput, match="already"):
        create_ring(path, CHANCE)
    assert ids(read_ring(path)) == ids(made)
    assert [each.name for each in tmp_path.iterdir()] == ["keys.json"]


def test_two_changes_at_once_do_not_lose_a_key(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    create_ring(path, CHANCE)

    def meanwhile(keys: KeyRing) -> KeyRing:
        with pytest.raises(InvalidInput, match="being changed"):
            change_ring(path, lambda keys: keys.rotated(CHANCE), CHANCE)
        return keys.rotated(CHANCE)

    change_ring(path, meanwhile, CHANCE)
    change_ring(path, lambda keys: keys.rotated(CHANCE), CHANCE)
    assert len(read_ring(path).keys) == 3


def test_a_change_that_fails_leaves_the_ring_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    create_ring(path, CHANCE)
    before = path.read_bytes()
    with pytest.raises(InvalidInput):
        change_ring(path, lambda keys: keys.without(keys.newest.id), CHANCE)
    assert path.read_bytes() == before


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o644])
def test_a_ring_that_others_can_read_or_write_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "keys.json"
    create_ring(path, CHANCE)
    path.chmod(mode)
    with pytest.raises(InvalidInput, match="open to others"):
        read_ring(path)


def test_what_is_no_ring_file_is_refused(tmp_path: Path) -> None:
    create_ring(tmp_path / "real", CHANCE)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "folder").mkdir(mode=0o700)
    (tmp_path / "large").write_bytes(b" " * (1 << 20))
    (tmp_path / "large").chmod(0o600)
    for name in ("none", "link", "folder", "large"):
        with pytest.raises(InvalidInput):
            read_ring(tmp_path / name)
