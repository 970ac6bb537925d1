"""The digests of bodies: computed beside the stream, and compared with what the client said.

MD5 (the ETag) is the slowest step of a large upload and lets go of the interpreter lock, so large
bodies are hashed by a few threads, a MiB at a time, while the loop goes on receiving and writing.
What must hold: digests are those of exactly the bytes fed, in order; the loop is held for no more than
a MiB; no more than a few MiB await hashing.
"""

import asyncio
from collections.abc import Iterable
from concurrent.futures import Executor

from msgspec import Struct

from holdfast.base.checksums import Buffer, ChecksumAlgorithm, Hasher, feed, new_hasher, new_md5
from holdfast.base.clock import Clock
from holdfast.objects.errors import BadDigest, InvalidRequest
from holdfast.objects.model import Checksum, ExpectedDigests

STEP_BYTES = 1 << 20
BEHIND_BYTES_MAX = 4 << 20
DEFAULT_ALGORITHM = ChecksumAlgorithm.CRC64NVME


class Sums(Struct, frozen=True):
    """The digests of a body."""

    md5: bytes
    checksums: dict[ChecksumAlgorithm, bytes]

    def checksum(self, algorithm: ChecksumAlgorithm) -> Checksum:
        """One of them, as it is stored."""
        return Checksum(algorithm, self.checksums[algorithm])


def wanted(stored: ChecksumAlgorithm, announced: ChecksumAlgorithm | None) -> tuple[ChecksumAlgorithm, ...]:
    """What has to be computed: what is stored, and what the client will compare with."""
    return (stored,) if announced is None or announced is stored else (stored, announced)


def sum_whole(data: Buffer, algorithms: Iterable[ChecksumAlgorithm]) -> Sums:
    """The digests of a small body, at once."""
    md5 = new_md5()
    feed(md5, data)
    checksums = {}
    for algorithm in algorithms:
        hasher = new_hasher(algorithm)
        feed(hasher, data)
        checksums[algorithm] = hasher.digest()
    return Sums(md5.digest(), checksums)


def check_expected(sums: Sums, expected: ExpectedDigests) -> None:
    """Whether the body is what the client meant to send. Raises BadDigest; InvalidRequest for a
    checksum that was not announced before the body."""
    if expected.md5 is not None and expected.md5 != sums.md5:
        raise BadDigest("The body does not have the MD5 that was sent with it.", digest="MD5")
    checksum = expected.checksum
    if checksum is None:
        return
    actual = sums.checksums.get(checksum.algorithm)
    if actual is None:
        raise InvalidRequest(
            f"A {checksum.algorithm.value} checksum came without being announced.",
            hint="Name it in x-amz-sdk-checksum-algorithm or x-amz-trailer.",
        )
    if actual != checksum.value:
        name = checksum.algorithm.value
        raise BadDigest(f"The body does not have the {name} that was sent with it.", digest=name)


class RunningDigests:
    """The digests of a body that streams. With a pool they are computed there, else by the loop."""

    def __init__(self, algorithms: Iterable[ChecksumAlgorithm], pool: Executor | None, clock: Clock) -> None:
        self._md5 = new_md5()
        self._hashers = {algorithm: new_hasher(algorithm) for algorithm in algorithms}
        self._all: tuple[Hasher, ...] = (self._md5, *self._hashers.values())
        self._pool = pool
        self._clock = clock
        self._pending: list[Buffer] = []
        self._pending_bytes = 0
        self._job: asyncio.Future[None] | None = None

    async def feed(self, data: Buffer) -> None:
        """The next bytes. They must not change until `finish`. Waits when hashing falls behind."""
        if self._pool is None:
            await self._here(data)
            return
        self._pending.append(data)
        self._pending_bytes += len(data)
        if self._pending_bytes < STEP_BYTES:
            return
        if self._job is None or self._job.done():
            await self._next_job()
        elif self._pending_bytes >= BEHIND_BYTES_MAX:
            await self._job
            await self._next_job()

    async def finish(self) -> Sums:
        """The digests of all."""
        if self._pool is not None:
            await self._next_job()
            if self._job is not None:
                await self._job
        return Sums(self._md5.digest(), {name: hasher.digest() for name, hasher in self._hashers.items()})

    async def _next_job(self) -> None:
        if self._job is not None:
            await self._job  # also tells of its failure
            self._job = None
        if self._pending:
            assert self._pool is not None
            pending, self._pending, self._pending_bytes = self._pending, [], 0
            loop = asyncio.get_running_loop()
            self._job = loop.run_in_executor(self._pool, _update_all, self._all, pending)

    async def _here(self, data: Buffer) -> None:
        if len(data) <= STEP_BYTES:
            _update(self._all, data)
            return
        view = memoryview(data)
        for start in range(0, len(view), STEP_BYTES):
            _update(self._all, view[start : start + STEP_BYTES])
            await self._clock.sleep(0)


def _update(hashers: Iterable[Hasher], data: Buffer) -> None:
    for hasher in hashers:
        hasher.update(data)


def _update_all(hashers: Iterable[Hasher], pending: list[Buffer]) -> None:
    # Each update takes the interpreter lock back, which can cost milliseconds beside a busy loop: a copy
    # to steps of a MiB costs a tenth of one.
    step: list[Buffer] = []
    size = 0
    for data in pending:
        step.append(data)
        size += len(data)
        if size >= STEP_BYTES:
            _update(hashers, step[0] if len(step) == 1 else b"".join(step))
            step, size = [], 0
    if step:
        _update(hashers, step[0] if len(step) == 1 else b"".join(step))
