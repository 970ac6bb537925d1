"""Real files to store: a tree of thousands of them, and damage to the files that hold them."""

import random
import shutil
import subprocess
import sysconfig
from pathlib import Path


def copy_standard_library(target: Path) -> int:
    """The Python standard library of this machine, as plain files; how many there are."""
    source = Path(sysconfig.get_path("stdlib"))
    shutil.copytree(source, target, symlinks=False, ignore=_not_ours, ignore_dangling_symlinks=True)
    return sum(path.is_file() for path in target.rglob("*"))


def _not_ours(folder: str, names: list[str]) -> set[str]:
    # Installed packages differ from machine to machine, and shared objects are no better than other bytes.
    return {
        name for name in names if name in ("site-packages", "dist-packages") or name.startswith("config-")
    }


def write_random_file(path: Path, size: int, seed: int) -> None:
    """`size` bytes that do not compress and are the same for the same seed."""
    source = random.Random(seed)
    with path.open("wb") as file:
        while size > 0:
            part = source.randbytes(min(size, 8 << 20))
            file.write(part)
            size -= len(part)


def assert_same_tree(one: Path, other: Path) -> None:
    """What `diff -r` says: nothing."""
    done = subprocess.run(["diff", "-r", one, other], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), done.stdout[:2000] + done.stderr[:2000]


def shard_files(store: Path) -> list[Path]:
    """The files of a store that hold shards."""
    return [path for path in (store / "shards").rglob("*") if path.is_file()]


def flip_bytes(path: Path, count: int, chance: random.Random) -> None:
    """Change `count` bytes of a file in place, behind everybody's back."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        for _ in range(count):
            at = chance.randrange(size)
            file.seek(at)
            old = file.read(1)
            file.seek(at)
            file.write(bytes([old[0] ^ 1 << chance.randrange(8)]))
