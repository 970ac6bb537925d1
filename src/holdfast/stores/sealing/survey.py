"""Which keys the blobs of a sealed store are sealed with: whether an old key can leave the ring.

What must hold: a key counts as not in use only when every blob was looked at; whatever could not be read is
counted as such. A page of names at a time, with the 96 bytes of each header, so that it can be a chore.
"""

import asyncio
from collections import Counter

from holdfast.base.errors import Damaged
from holdfast.stores.port import Range, ShardMissing, Store
from holdfast.stores.sealing.blob import HEADER_BYTES, key_id_of

_AT_ONCE = 8


class KeysInUse:
    """A count over the blobs of `inner`, the store that holds the ciphertext. `blobs` tells how many are
    sealed with each key, by its id in hexadecimal digits; `spoiled` how many have a header that is wrong, so
    that it is not known what they are sealed with."""

    def __init__(self, inner: Store) -> None:
        self._inner = inner
        self._after = ""
        self.blobs: Counter[str] = Counter()
        self.spoiled = 0
        self.done = False

    def may_leave(self, key: str) -> bool:
        """Whether all blobs were looked at, all could be read, and none is sealed with that key. Blobs that
        were put since, with a ring in which it was the newest, are not known."""
        return self.done and not self.spoiled and key not in self.blobs

    async def step(self, *, limit: int, timeout_s: float) -> None:
        """Look at the next page, of at most `limit` names. What fails is raised, and nothing of the page is
        counted: the same step can be made again. Raises as `list` and `get` of the store."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        names = await self._inner.list(self._after, limit=limit, timeout_s=timeout_s)
        found: Counter[str] = Counter()
        spoiled = 0
        for start in range(0, len(names), _AT_ONCE):
            reads = [self._key_of(name, deadline) for name in names[start : start + _AT_ONCE]]
            ends = await asyncio.gather(*reads, return_exceptions=True)
            for end in ends:
                if isinstance(end, ShardMissing):
                    continue  # deleted meanwhile
                if isinstance(end, Damaged):
                    spoiled += 1
                elif isinstance(end, BaseException):
                    raise end
                else:
                    found[end] += 1
        self.blobs += found
        self.spoiled += spoiled
        self._after = names[-1] if names else self._after
        self.done = not names

    async def _key_of(self, name: str, deadline: float) -> str:
        left_s = max(0.0, deadline - asyncio.get_running_loop().time())
        (header,) = await self._inner.get(name, [Range(0, HEADER_BYTES)], timeout_s=left_s)
        return key_id_of(name, header).hex()
