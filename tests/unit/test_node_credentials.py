"""Credentials: made once, for the owner's eyes only, never a fixed default."""

import re
import stat
from pathlib import Path

import pytest

from holdfast.base.errors import InvalidInput
from holdfast.base.randomness import SeededRandomness, SystemRandomness
from holdfast.node.credentials import FILE_NAME, Credentials, find, from_secret, generate, obtain

RANDOMNESS = SystemRandomness()
ENVIRONMENT = {"HOLDFAST_ACCESS_KEY_ID": "me-myself", "HOLDFAST_SECRET_ACCESS_KEY": "a secret of mine"}


def test_they_are_made_once_and_found_again(tmp_path: Path) -> None:
    first = obtain(tmp_path, {}, RANDOMNESS)
    assert obtain(tmp_path, {}, RANDOMNESS) == first
    assert find(tmp_path, {}) == first
    assert len(first.secret_access_key) == 40


def test_two_installations_never_share_them(tmp_path: Path) -> None:
    pairs = {generate(RANDOMNESS).secret_access_key for _ in range(20)}
    assert len(pairs) == 20


def test_only_the_owner_can_read_the_file(tmp_path: Path) -> None:
    obtain(tmp_path, {}, RANDOMNESS)
    assert stat.S_IMODE((tmp_path / FILE_NAME).stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_file_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    obtain(tmp_path, {}, RANDOMNESS)
    (tmp_path / FILE_NAME).chmod(mode)
    with pytest.raises(InvalidInput, match="chmod 600"):
        obtain(tmp_path, {}, RANDOMNESS)


@pytest.mark.parametrize("text", ["", "{}", "not json", '{"access_key_id": 3}'])
def test_a_broken_file_is_refused_not_replaced(tmp_path: Path, text: str) -> None:
    path = tmp_path / FILE_NAME
    path.touch(0o600)
    path.write_text(text)
    with pytest.raises(InvalidInput, match="not readable as JSON"):
        obtain(tmp_path, {}, RANDOMNESS)
    assert path.read_text() == text


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InvalidInput):
        obtain(tmp_path, {}, RANDOMNESS)


def test_the_environment_wins_and_leaves_no_file(tmp_path: Path) -> None:
    assert obtain(tmp_path, ENVIRONMENT, RANDOMNESS) == Credentials("me-myself", "a secret of mine")
    assert list(tmp_path.iterdir()) == []


def test_the_secret_does_not_show() -> None:
    assert "a secret" not in repr(Credentials("me-myself", "a secret of mine"))
    assert "a secret" not in f"{[Credentials('me-myself', 'a secret of mine')]}"


def test_a_crash_before_the_name_was_given_is_mended(tmp_path: Path) -> None:
    (tmp_path / f".{FILE_NAME}.new").write_text("half")
    obtain(tmp_path, {}, RANDOMNESS)
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


SECRET = b"a secret that all nodes of a cluster share"


def test_every_node_of_a_cluster_makes_the_same_pair_of_its_secret(tmp_path: Path) -> None:
    first = obtain(tmp_path / "one", {}, SeededRandomness(1), secret=SECRET)
    assert obtain(tmp_path / "two", {}, SeededRandomness(2), secret=SECRET) == first
    assert find(tmp_path, {}, secret=SECRET) == first
    assert re.fullmatch(r"HF[A-Z2-7]{18}", first.access_key_id)
    assert re.fullmatch(r"[A-Za-z0-9]{40}", first.secret_access_key)
    assert from_secret(SECRET + b"!") not in (first, from_secret(SECRET))
    assert not list(tmp_path.iterdir())


def test_the_environment_has_the_last_word_in_a_cluster_too(tmp_path: Path) -> None:
    assert find(tmp_path, ENVIRONMENT, secret=SECRET) == Credentials("me-myself", "a secret of mine")
