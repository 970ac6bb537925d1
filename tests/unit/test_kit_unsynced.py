"""The recording of what was synced takes what was not, and nothing else: drills rest on it."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.unsynced import RECORD, TakenBack, take_back

ROOT = Path(__file__).resolve().parents[2]
BEGIN = """
import os
from pathlib import Path
from tests.kit.unsynced import record
root = Path("root")
record(root.absolute())

def sync(path):
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)

def make(path, data, *, synced=True):
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    os.pwrite(descriptor, data, 0)
    if synced:
        os.fsync(descriptor)
    os.close(descriptor)

def opened():
    return os.open(root / "a", os.O_RDWR)

def two():
    make(root / "a", b"old")
    make(root / "b", b"new")
    sync(root)
"""


class All(random.Random):
    """Chance that takes all it may."""

    def random(self) -> float:
        return 0.0


class Nothing(random.Random):
    """Chance that takes nothing."""

    def random(self) -> float:
        return 0.6


def done(home: Path, program: str, chance: random.Random) -> tuple[TakenBack, dict[str, bytes]]:
    """Run a program, cut its power, and look at what is left."""
    root, recording = home / "root", home / "recording"
    root.mkdir(exist_ok=True)
    recording.mkdir(exist_ok=True)
    subprocess.run(
        [sys.executable, "-c", BEGIN + program],
        cwd=home,
        env={**os.environ, RECORD: str(recording), "PYTHONPATH": str(ROOT)},
        check=True,
    )
    taken = take_back(root, recording, chance)
    left = {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else b"/" for path in root.rglob("*")
    }
    assert list(recording.iterdir()) == []
    return taken, left


@pytest.mark.parametrize(
    ("program", "left"),
    [
        # New files: neither their bytes nor their names stay by themselves.
        ("make(root / 'a', b'x')", {}),
        ("make(root / 'a', b'x'); sync(root)", {"a": b"x"}),
        ("make(root / 'a', b'x', synced=False); sync(root)", {"a": b""}),
        # Folders: what is in one goes with it.
        ("(root / 'f').mkdir(); make(root / 'f' / 'a', b'x'); sync(root / 'f')", {}),
        (
            "(root / 'f').mkdir(); make(root / 'f' / 'a', b'x'); sync(root / 'f'); sync(root)",
            {"f": b"/", "f/a": b"x"},
        ),
        # Names that are taken away, and given to others.
        ("make(root / 'a', b'x'); sync(root); (root / 'a').unlink()", {"a": b"x"}),
        ("make(root / 'a', b'x'); sync(root); (root / 'a').unlink(); sync(root)", {}),
        ("make(root / 'a', b'x'); os.link(root / 'a', root / 'b'); sync(root)", {"a": b"x", "b": b"x"}),
        (
            "two(); (root / 'b').replace(root / 'a')",
            {"a": b"old", "b": b"new"},
        ),
        (
            "two(); (root / 'b').replace(root / 'a');sync(root)",
            {"a": b"new"},
        ),
        # A file that Python's own open wrote, renamed before it was synced.
        ("(root / 'b').write_bytes(b'new'); (root / 'b').replace(root / 'a'); sync(root)", {"a": b""}),
        # Writes over what was there.
        (
            "make(root / 'a', b'0123'); sync(root); f = opened(); os.pwrite(f, b'xx', 1)",
            {"a": b"0123"},
        ),
        (
            "make(root / 'a', b'0123'); sync(root); f = opened(); os.pwrite(f, b'xx', 1);"
            "os.fdatasync(f); os.pwrite(f, b'yyyy', 2)",
            {"a": b"0xx3"},
        ),
        (
            "make(root / 'a', b'0123'); sync(root); f = opened();"
            "os.pwritev(f, [b'x'], 0, os.RWF_DSYNC); os.pwritev(f, [b'y'], 1)",
            {"a": b"x123"},
        ),
        (
            "make(root / 'a', b'01'); sync(root); f = os.open(root / 'a', os.O_WRONLY | os.O_APPEND);"
            "os.write(f, b'2'); os.fsync(f); os.write(f, b'3')",
            {"a": b"012"},
        ),
        (
            "make(root / 'a', b'0123'); sync(root); os.ftruncate(os.open(root / 'a', os.O_RDWR), 1)",
            {"a": b"0123"},
        ),
        # Elsewhere nothing is recorded.
        ("make(Path('elsewhere'), b'x', synced=False)", {}),
    ],
)
def test_what_was_not_synced_is_gone_and_what_was_is_there(
    tmp_path: Path, program: str, left: dict[str, bytes]
) -> None:
    assert done(tmp_path, program, All())[1] == left


def test_the_next_process_begins_where_this_one_was_cut(tmp_path: Path) -> None:
    assert done(tmp_path, "make(root / 'a', b'x', synced=False); sync(root)", All())[1] == {"a": b""}
    assert done(tmp_path, "", All()) == (TakenBack(0, 0), {"a": b""})
    assert done(tmp_path, "make(root / 'b', b'y')", Nothing())[1] == {"a": b"", "b": b"y"}
    assert done(tmp_path, "(root / 'b').unlink()", All())[1] == {"a": b"", "b": b"y"}


def test_all_of_it_may_stay(tmp_path: Path) -> None:
    program = "make(root / 'a', b'x', synced=False); (root / 'f').mkdir(); make(root / 'f' / 'b', b'y')"
    taken, left = done(tmp_path, program, Nothing())
    assert taken == TakenBack(0, 0)
    assert left == {"a": b"x", "f": b"/", "f/b": b"y"}


def test_of_one_folder_the_later_never_stays_without_the_earlier(tmp_path: Path) -> None:
    program = "\n".join(f"make(root / '{number:02}', b'x', synced=False)" for number in range(20))
    seen = set()
    for seed in range(10):
        home = tmp_path / str(seed)
        home.mkdir()
        _, left = done(home, program, random.Random(seed))
        assert sorted(left) == [f"{number:02}" for number in range(len(left))]
        seen.add(len(left))
    assert {0, 20} < seen, seen


def test_any_sectors_of_a_file_may_stay(tmp_path: Path) -> None:
    program = """
make(root / 'a', bytes(512 * 8)); sync(root)
os.pwrite(os.open(root / 'a', os.O_RDWR), bytes([1]) * 512 * 8, 0)
"""
    seen = set()
    for seed in range(8):
        home = tmp_path / str(seed)
        home.mkdir()
        content = done(home, program, random.Random(seed))[1]["a"]
        sectors = [content[at : at + 512] for at in range(0, len(content), 512)]
        assert all(sector in (bytes(512), bytes([1]) * 512) for sector in sectors)
        seen.add(sum(sector[0] for sector in sectors))
    assert {0, 8} < seen, seen
