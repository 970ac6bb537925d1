"""Open files, shared between the loop and the threads of a store.

A descriptor's number must never be closed while a thread still uses it: the kernel would give the
number to the next file opened, and a late write would land in it. So a `Descriptor` is closed when
the last reference to it is gone, and whoever uses one holds a reference: the cache may drop it, and the
store may be closed, at any moment, without asking who is still busy. (CPython counts references, so
this happens at once and in a known place.)

`Descriptors` is a bounded cache of them with a second chance for those used since the last look
(the CLOCK algorithm): a hit touches no lock and moves nothing, which keeps it cheap on the loop.
"""

import contextlib
import threading

from holdfast.stores.directory.files import Files


class Descriptor:
    """An open file or folder."""

    __slots__ = ("_files", "_open", "number", "used")

    def __init__(self, files: Files, number: int) -> None:
        self._files = files
        self._open = True
        self.number = number
        self.used = False

    def close(self) -> None:
        """Close now; only for who knows that nobody else has it."""
        if self._open:
            self._open = False
            # What was written was synced before; closing cannot lose it, and nothing can be done.
            with contextlib.suppress(OSError):
                self._files.close(self.number)

    def __del__(self) -> None:
        self.close()


class Descriptors:
    """At most `limit` descriptors by key.

    A file that is opened while its name is being removed must not be kept, or readers would see the
    blob after its deletion. So who opens takes a `ticket` before and hands it in with `keep`, and
    `forget`, called after the name is gone, voids the tickets out for that key.
    """

    def __init__(self, limit: int) -> None:
        assert limit >= 1
        self._limit = limit
        self._kept: dict[str, Descriptor] = {}
        self._lock = threading.Lock()
        self._opening: dict[str, set[int]] = {}
        self._ticket_next = 0

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, key: str) -> Descriptor | None:
        """The descriptor of `key`, or None. Safe from every thread, takes no lock."""
        found = self._kept.get(key)
        if found is not None:
            found.used = True
        return found

    def ticket(self, key: str) -> int:
        """Say that `key` is about to be opened; goes back by `keep` or `void`."""
        with self._lock:
            ticket = self._ticket_next
            self._ticket_next += 1
            self._opening.setdefault(key, set()).add(ticket)
            return ticket

    def keep(self, key: str, ticket: int, descriptor: Descriptor) -> None:
        """Keep an opened one, unless `key` was forgotten since the ticket was taken."""
        dropped: list[Descriptor | None] = []
        with self._lock:
            if self._take_back(key, ticket):
                dropped.append(self._kept.pop(key, None))
                # Before it comes in, or, where all others were used, the newcomer would go first.
                dropped += self._drop(self._limit - 1)
                self._kept[key] = descriptor
        del dropped  # closes, outside of the lock

    def void(self, key: str, ticket: int) -> None:
        """Opening came to nothing."""
        with self._lock:
            self._take_back(key, ticket)

    def forget(self, key: str) -> None:
        """`key` is gone: neither the descriptor kept nor one being opened will be found again."""
        with self._lock:
            self._opening.pop(key, None)
            dropped = self._kept.pop(key, None)
        del dropped  # the last reference frees a deleted file's blocks: in the caller's thread

    def shrink(self, limit: int) -> None:
        """Drop down to `limit`, longest unused first."""
        with self._lock:
            dropped = self._drop(limit)
        del dropped

    def _drop(self, limit: int) -> list[Descriptor]:
        dropped: list[Descriptor] = []
        while len(self._kept) > limit:
            key, oldest = next(iter(self._kept.items()))
            del self._kept[key]
            if oldest.used:
                oldest.used = False
                self._kept[key] = oldest
            else:
                dropped.append(oldest)
        return dropped

    def _take_back(self, key: str, ticket: int) -> bool:
        tickets = self._opening.get(key)
        if tickets is None or ticket not in tickets:
            return False
        tickets.discard(ticket)
        if not tickets:
            del self._opening[key]
        return True
