"""How many files the process may have open, and who may take how many of them.

What must hold: however many clients connect and however many shards are kept open, the others get theirs.
A quarter of what is not for clients is left to logs, copies and calls under way.
"""

import resource
from contextlib import suppress

FILES_OPEN_WANTED = 65_536
CONNECTIONS_MAX = 4096
KEPT_OPEN_MAX = 256


def allow_many_files() -> None:
    """Connections and open shards are descriptors; shells often allow 1,024 although more may be had."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES_OPEN_WANTED if hard == resource.RLIM_INFINITY else min(FILES_OPEN_WANTED, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def files_allowed() -> int:
    """Files that this process may have open at once."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return FILES_OPEN_WANTED if soft == resource.RLIM_INFINITY else soft


def connections_allowed(files: int) -> int:
    """Connections that may be open at once, of so many files: half of them. Whoever comes beyond is told to
    slow down; without a limit of ours they would wait unheard."""
    return min(CONNECTIONS_MAX, files // 2)


def kept_open(files: int, stores: int) -> int:
    """How many shards each store may keep open between calls, of so many files, and how many folders."""
    for_stores = (files - connections_allowed(files)) * 3 // 4
    return max(1, min(KEPT_OPEN_MAX, for_stores // (2 * stores)))
