"""An embedded index on real directories, small enough to fill segments and make checkpoints quickly."""

from pathlib import Path

from holdfast.base.clock import Clock
from holdfast.base.randomness import Randomness
from holdfast.index.sqlite import (
    CopyOptions,
    DirectoryCopy,
    DirectoryMember,
    IndexOptions,
    LogOptions,
    SqliteIndex,
    open_index,
)

QUICK = IndexOptions(
    patience_s=60.0,
    open_s=60.0,
    checkpoint_bytes_min=256 << 10,
    checkpoint_check_s=0.1,
    log=LogOptions(
        patience_s=60.0,
        overdue_s=60.0,
        bulk_s=60.0,
        grace_s=0.5,
        reattach_s=0.2,
        segment_bytes=128 << 10,
        tail_bytes=512 << 10,
    ),
    copies=CopyOptions(overdue_s=60.0, retry_s=0.2, linger_s=0.02, linger_others_s=0.05),
)
"""Quick where a wait is gone through each time, and patient where it ends what a busy disk makes late."""


def disk(folder: Path, number: int) -> Path:
    """The directory of one store; made."""
    path = folder / f"disk{number}"
    path.mkdir(parents=True, exist_ok=True)
    return path


async def open_files(
    folder: Path, members: int, clock: Clock, randomness: Randomness, options: IndexOptions = QUICK
) -> SqliteIndex:
    """Members on `disk0`, `disk1`, ..., copies on all of them, as many as the options keep."""
    paths = [disk(folder, number) / "index" for number in range(members)]
    return await open_index(
        members=[DirectoryMember(path.parent.name, path) for path in paths],
        copies=[DirectoryCopy(path.parent.name, path) for path in paths],
        clock=clock,
        randomness=randomness,
        options=options,
    )
