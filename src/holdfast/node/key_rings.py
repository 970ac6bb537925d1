"""The key ring of a node: what buckets that are not ours are sealed with, and where its copies lie.

    <data>/key-ring.json                the ring
    <store>/key-ring.json               a copy in each directory that is a store of this node

Copies lie where unsealed shards lie anyway: whoever takes such a disk away learns nothing that the disk
itself does not tell. In a cluster keys are made of its secret, so that all nodes have them without telling
each other; a new secret makes a new key, and older keys stay in the ring. What must hold: no key is
ever forgotten here; a new ring is made only where none can be found; and what a disk does not answer holds
nobody up for long.
"""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from holdfast.base.errors import Busy, HoldfastError, InvalidInput, Unavailable
from holdfast.base.randomness import Randomness
from holdfast.cluster.secret import derive
from holdfast.stores.directory.pool import Lane
from holdfast.stores.sealing import Key, KeyRing, change_ring, create_ring, read_ring, save_ring

FILE_NAME = "key-ring.json"
TIMEOUT_S = 5.0
SETTLED_S = 10.0
"""How long others take to learn a secret, at most, once this node has."""

Secrets = Callable[[], tuple[bytes, ...]]

T = TypeVar("T")


class KeyRings:
    """Finds, makes, copies and changes the ring. `secrets` are those of the cluster that count now, none
    where there is no cluster; `on_change` is told of each new ring."""

    def __init__(
        self, data: Path, randomness: Randomness, secrets: Secrets = tuple, *, writes: bool = True
    ) -> None:
        self.path = data / FILE_NAME
        self._randomness = randomness
        self._secrets = secrets
        self._known: tuple[bytes, ...] = ()
        self._known_at = 0.0
        self._writes = writes
        self._copied: dict[Path, KeyRing] = {}
        self._one_by_one = asyncio.Lock()
        self._own = Lane(f"the keys in {self.path}", threads=1, waiting_max=16)
        self._seen: tuple[int, ...] = ()
        self.ring: KeyRing | None = None
        self.made = False
        """Whether this process made the first key of all, which is in no copy that a person has."""
        self.on_change: list[Callable[[KeyRing], None]] = []

    @property
    def copies(self) -> tuple[Path, ...]:
        """The stores that have a copy of the ring as it is now."""
        return tuple(folder for folder, ring in self._copied.items() if ring is self.ring)

    async def find(self, folders: Sequence[Path]) -> KeyRing | None:
        """The ring with all keys that can be found. Raises InvalidInput for a file that is there and cannot
        be used: it may have the only copy of a key."""
        async with self._one_by_one:
            return await self._find(folders)

    async def _find(self, folders: Sequence[Path]) -> KeyRing | None:
        ring = self.ring or await self._ask(self.path, lambda: _read(self.path))
        for folder in folders:
            if folder in self._copied:
                continue
            path = folder / FILE_NAME
            try:
                found = await self._ask(path, lambda path=path: _read(path))  # type: ignore[misc]
            except (Unavailable, Busy, OSError):
                continue  # asked again the next time
            except InvalidInput:
                if ring is None:
                    raise
                continue  # written anew by `keep`
            if found is not None:
                ring = found if ring is None else ring.joined(found)
        if ring is not self.ring or ring is None:
            made = self._of_secrets()
            ring = ring if made is None else made if ring is None else made.joined(ring)
        if ring is not None and ring is not self.ring:
            await self._have(ring)
        return ring

    async def obtain(self, folders: Sequence[Path]) -> KeyRing:
        """The ring; made now where there is none. Raises InvalidInput, Unavailable."""
        async with self._one_by_one:
            ring = await self._find(folders)
            if ring is None:
                self.made = True
                self._changed(await self._ask(self.path, lambda: create_ring(self.path, self._randomness)))
        await self.keep(folders)
        assert self.ring is not None
        return self.ring

    async def keep(self, folders: Sequence[Path]) -> None:
        """Have a copy in each folder, as far as they take one; the next time tries again."""
        ring = self.ring
        if ring is None or not self._writes:
            return
        for folder in folders:
            if self._copied.get(folder) is ring:
                continue
            path = folder / FILE_NAME
            try:
                await self._ask(path, lambda path=path: self._write(path, ring))  # type: ignore[misc]
            except (HoldfastError, OSError):
                continue
            self._copied[folder] = ring

    async def _have(self, ring: KeyRing) -> None:
        if self._writes:
            await self._ask(self.path, lambda: self._write(self.path, ring))
        self._changed(ring)

    def _changed(self, ring: KeyRing) -> None:
        self.ring = ring
        for told in self.on_change:
            told(ring)

    def _write(self, path: Path, ring: KeyRing) -> None:
        """Have a file with this ring; keys that only the file has stay in it."""
        if not path.exists():
            save_ring(path, ring, self._randomness)
            return
        try:
            change_ring(path, lambda old: ring.joined(old), self._randomness)
        except InvalidInput:
            if path == self.path:
                raise
            path.unlink(missing_ok=True)  # a copy that is damaged
            save_ring(path, ring, self._randomness)

    async def follow(self, now: float) -> None:
        """See to it that the ring has a key of each secret that counts. What is sealed from now on is sealed
        with the last one's: others know it for sure. Raises Unavailable."""
        if self.ring is None:
            return
        await self._look_at_file()
        known, ring = self._secrets(), self.ring
        if not known:
            return
        if known != self._known:
            self._known, self._known_at = known, now
            made = self._of_secrets()
            assert made is not None
            ring = ring.joined(made)
        elif now - self._known_at >= SETTLED_S:
            key = _of_secret(known[-1])
            ring = ring if ring.newest.id == key.id else ring.with_newest(key)
        if ring is not self.ring:
            await self._have(ring)
            await self.keep(tuple(self._copied))

    async def _look_at_file(self) -> None:
        """Have what `holdfast keys` did to the file."""
        seen = await self._own.run(_stamp, self.path, timeout_s=TIMEOUT_S)
        if seen == self._seen:
            return
        found = await self._own.run(_read, self.path, timeout_s=TIMEOUT_S)
        if found is None and self.ring is not None:
            # Somebody took it away: it may have been the only copy but for this process.
            await self._own.run(self._write, self.path, self.ring, timeout_s=TIMEOUT_S)
            return
        self._seen = seen
        if found is not None and self.ring is not None:
            have = {key.id for key in self.ring.keys}
            if any(key.id not in have for key in found.keys):
                self._changed(found.joined(self.ring))
                await self.keep(tuple(self._copied))

    def close(self) -> None:
        """Let go of the thread; never waits."""
        self._own.close()

    def _of_secrets(self) -> KeyRing | None:
        known = self._secrets()
        return KeyRing(tuple(_of_secret(secret) for secret in known)) if known else None

    @staticmethod
    async def _ask(path: Path, work: Callable[[], T]) -> T:
        lane = Lane(f"the keys in {path}", threads=1, waiting_max=0)
        try:
            return await lane.run(work, timeout_s=TIMEOUT_S)
        finally:
            lane.close()


def _stamp(path: Path) -> tuple[int, ...]:
    """What changes with a file's content."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return (found.st_ino, found.st_mtime_ns, found.st_size)


def _of_secret(secret: bytes) -> Key:
    return Key(derive(secret, b"sealing", "holdfast sealing key", 32))


def _read(path: Path) -> KeyRing | None:
    """The ring in a file; None where there is no file. Raises InvalidInput."""
    return read_ring(path) if path.is_symlink() or path.exists() else None
