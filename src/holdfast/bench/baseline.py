"""What the disk itself can do: plain, synced writes of the same shard bytes to the same directories.

One thread a store, each shard a new file, `fdatasync` each MiB as the stores do it, the folder synced at
the end: the least that any program must do that says "durable".
"""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from holdfast.base.clock import Clock

_PIECE = 1 << 20
_DATA = os.urandom(_PIECE)  # noqa: TID251 - contents, not chance


def write_plain(folders: list[Path], shard_bytes: int, rounds: int, clock: Clock) -> float:
    """Seconds for `rounds` times one shard of `shard_bytes` to every folder at once."""

    def write(folder: Path, number: int) -> None:
        write_synced(folder / f"plain-{number}", shard_bytes)
        parent = os.open(folder, os.O_RDONLY)
        os.fsync(parent)
        os.close(parent)

    with ThreadPoolExecutor(len(folders)) as pool:
        began = clock.monotonic()
        for number in range(rounds):
            list(pool.map(write, folders, [number] * len(folders)))
        seconds = clock.monotonic() - began
    for folder in folders:
        for number in range(rounds):
            (folder / f"plain-{number}").unlink()
    return seconds


def write_synced(path: Path, size: int) -> int:
    """A new file of so many bytes, synced as it grows, as the stores do it. Answers `size`."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        left = size
        while left > 0:
            left -= os.write(descriptor, _DATA[: min(left, _PIECE)])
            os.fdatasync(descriptor)
    finally:
        os.close(descriptor)
    return size
