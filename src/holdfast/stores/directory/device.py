"""Which device a directory lies on, as a text that is the same for all directories on it.

Topology treats directories on one device as one failure domain, so this must err towards "the same":
partitions of one disk are that disk; a volume that sits on one disk is that disk. A volume over several
disks (RAID, LVM) is a device of its own. Numbers such as 8:1 change from boot to boot, so the disk's own
identifier is used where the kernel knows one, then its name. File systems without a block device
(tmpfs, overlay, network) are named by the file system's id.
"""

import contextlib
import os
from pathlib import Path

_DEPTH_MAX = 8


def device_name(status: os.stat_result, space: os.statvfs_result, system: Path = Path("/sys")) -> str:
    """The device of a directory with that fstat and fstatvfs result. `system` is where sysfs is."""
    major, minor = os.major(status.st_dev), os.minor(status.st_dev)
    entry = system / "dev" / "block" / f"{major}:{minor}"
    with contextlib.suppress(OSError):
        return _disk_name(entry.resolve(strict=True), 0)
    if space.f_fsid:
        return f"filesystem-{space.f_fsid & 0xFFFFFFFFFFFFFFFF:016x}"
    return f"filesystem-{major}-{minor}"


def _disk_name(entry: Path, depth: int) -> str:
    """The name of the disk behind a block device's folder in sysfs."""
    if (entry / "partition").exists():
        entry = entry.parent
    slaves = entry / "slaves"
    below = sorted(slaves.iterdir()) if slaves.is_dir() else []
    if len(below) == 1 and depth < _DEPTH_MAX:
        return _disk_name(below[0].resolve(strict=True), depth + 1)
    for source in ("wwid", "device/wwid", "dm/uuid", "md/uuid", "serial", "device/serial"):
        with contextlib.suppress(OSError):
            if text := (entry / source).read_text(errors="replace").strip():
                return "disk-" + "".join(c if c.isalnum() or c in "._-" else "-" for c in text)
    return f"disk-{entry.name}"
