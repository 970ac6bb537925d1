"""Silent corruption of shard files, by the book: every byte region, every harm, in one store, in as many as
the scheme can lose, and in one more.

What is promised: right bytes, and afterwards every file is again what the byte tables of `docs/formats.md`
say, to the last byte; beyond the promise an explicit error that names the pack; and nothing that was good
is touched by a repair of what was not.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from holdfast.base.ids import PackId, shard_name
from holdfast.base.randomness import SeededRandomness
from holdfast.chores.repair import Repair
from holdfast.index.port import Committed
from holdfast.packs.errors import TooManyShardsLost
from holdfast.packs.layout import BLOCK_BYTES
from holdfast.packs.model import Extent, ManifestEntry
from holdfast.packs.rows import KnownPack
from holdfast.packs.verifying import PackHealth
from holdfast.scheme import Scheme
from tests.kit.by_the_book import shard_data, shard_file
from tests.kit.harm import Harm, harmed
from tests.kit.regions import Region, shard_regions
from tests.kit.rig import Rig, build_rig

pytestmark = pytest.mark.virtual

SHAPES = {
    "a short stripe": (Scheme(4, 2), 45_000),
    "two stripes": (Scheme(4, 2), 1_200_000),
    "mirrors": (Scheme(1, 2), 9_000),
    "virtual shards": (Scheme(4, 2), 5_000),
    "wide": (Scheme(8, 3), 100_000),
}
IN_PLACE = (Harm.FLIP, Harm.ZERO, Harm.TRUNCATE)


class Older:
    """In the place of a file comes what it was before it was last written anew."""


class Elsewhere:
    """In the place of a file comes the same shard of another pack."""


@dataclass
class Case:
    """What is done to `shards` of the pack under test."""

    name: str
    shards: list[int]
    harm: Harm | type[Older] | type[Elsewhere]
    region: Region


class Subject:
    """Two packs in a rig, and everything that was ever in their shard files."""

    def __init__(self, rig: Rig, scheme: Scheme, size: int) -> None:
        self.rig = rig
        self.scheme = scheme
        chance = random.Random(size)
        self.bodies = [chance.randbytes(size), chance.randbytes(size)]
        self.extents: list[Extent] = []
        self.stored: list[bytes] = []
        self.older: dict[int, bytes] = {}
        self.refused = 0
        self.repair = Repair(rig.rewriter, rig.verifier, rig.packs.rows, rig.clock, lambda pack, why: None)

    async def write(self) -> None:
        for number, body in enumerate(self.bodies):
            entry = [ManifestEntry("b", f"k{number}", "v", 0, len(body))]
            written = await self.rig.packs.write(self.scheme, [body], lambda _, e=entry: e)
            outcomes = await self.rig.index.commit(written.transactions)
            assert all(isinstance(outcome, Committed) for outcome in outcomes)
            self.extents.append(written.extent)
            self.stored.append(await self._stored(written.extent.pack, body))
        await self.check_files()
        for shard in (await self.known()).places:
            self.older[shard] = self.file(await self.known(), shard)
            await self._write_anew(shard)

    async def _stored(self, pack: PackId, body: bytes) -> bytes:
        """Payload and manifest, put together from the data shards as they were first written."""
        known = await self.rig.packs.rows.fresh(pack)
        k = self.scheme.k
        manifest_bytes = known.row.manifest_bytes
        guess = body + bytes(manifest_bytes)
        # Units of this size and place; only their content is unknown where the manifest lies.
        units = {shard: bytearray(shard_data(guess, k, shard)) for shard in range(k)}
        for shard in range(k):
            if shard in known.places:
                file = self.file(known, shard)
                units[shard][:] = file[len(file) - len(units[shard]) :]
        unit, stored, at = (1 << 20) // k // BLOCK_BYTES * BLOCK_BYTES, bytearray(), 0
        while at < len(units[0]):
            for shard in range(k):
                stored += units[shard][at : at + unit]
            at += unit
        assert stored[: len(body)] == body
        return bytes(stored[: known.row.stored_bytes])

    async def _write_anew(self, shard: int) -> None:
        known = await self.known()
        self.spoil(known, shard, None)
        self.repair.report(known.pack, shard, "taken away")
        await self.mend()
        assert (await self.known()).places[shard] != known.places[shard]

    async def known(self, number: int = 0) -> KnownPack:
        return await self.rig.packs.rows.fresh(self.extents[number].pack)

    def file(self, known: KnownPack, shard: int) -> bytes:
        place = known.places[shard]
        return self.rig.memories[place.store].medium[shard_name(known.pack, shard, place.attempt)]

    def spoil(self, known: KnownPack, shard: int, content: bytes | None) -> None:
        place = known.places[shard]
        self.rig.memories[place.store].spoil(shard_name(known.pack, shard, place.attempt), content)

    async def mend(self) -> None:
        """Let the chore do what was reported, and no more than it has to."""
        for _ in range(3):
            for pack, shard, what in self.rig.damage:
                self.repair.report(pack, shard, what)
            self.rig.damage.clear()
            while await self.step():
                pass

    async def step(self) -> bool:
        """As the runner of chores does it: what can't be mended is told, and tried again later."""
        try:
            return await self.repair.step()
        except TooManyShardsLost:
            return False

    async def read(self, number: int = 0) -> bytes:
        extent = self.extents[number]
        pieces = self.rig.packs.read([extent], 0, extent.length)
        return b"".join([bytes(piece) async for piece in pieces])

    async def verify(self, number: int = 0) -> tuple[PackHealth, set[int]]:
        report = await self.rig.verifier.verify(await self.known(number))
        return report.state, {fault.shard for fault in report.faults}

    def expected(self, known: KnownPack, shard: int, number: int = 0) -> bytes:
        k, m = self.scheme.k, self.scheme.m
        attempt = known.places[shard].attempt
        body = self.bodies[number]
        return shard_file(self.stored[number], len(body), known.pack, k, m, shard, attempt)

    async def check_files(self, but: tuple[int, ...] = ()) -> None:
        """Every file that a row names is what the book says."""
        for number in range(len(self.extents)):
            known = await self.known(number)
            assert not known.missing
            for shard in known.places:
                if number or shard not in but:
                    assert self.file(known, shard) == self.expected(known, shard, number), (number, shard)
            assert len(set(known.stores)) == len(known.stores), "two shards on one store"


def subject_of(shape: str) -> Subject:
    scheme, size = SHAPES[shape]
    return Subject(build_rig(scheme.n + 1, ejections_max=scheme.m), scheme, size)


def cases(known: KnownPack, scheme: Scheme, seed: str) -> Iterator[Case]:
    """Every region with every harm, and every harm of a whole file; in one, m and m + 1 shards."""
    chance = SeededRandomness(seed)
    there = list(known.places)
    regions = shard_regions(known.layout.blocks)
    every = [(region, harm) for region in regions for harm in IN_PLACE]
    every += [(regions[-1], harm) for harm in (Harm.EXTEND, Harm.REMOVE, Harm.SWAP, Older, Elsewhere)]
    for region, harm in every:
        for count in sorted({1, scheme.m, scheme.m + 1}):
            first = chance.below(len(there))
            chosen = [there[(first + step) % len(there)] for step in range(count)]
            told = harm.value if isinstance(harm, Harm) else harm.__name__
            yield Case(f"{told} of {region.name} in {chosen}", chosen, harm, region)


async def do_harm(subject: Subject, case: Case) -> tuple[dict[int, bytes], tuple[int, ...]]:
    """Spoil the shards; what each of them was, and those that are really different now."""
    known = await subject.known()
    before = {shard: subject.file(known, shard) for shard in case.shards}
    other = await subject.known(1)
    there = list(known.places)
    changed = []
    for shard, old in before.items():
        neighbour = there[(there.index(shard) + 1) % len(there)]
        if case.harm is Older:
            new: bytes | None = subject.older[shard]
        elif case.harm is Elsewhere:
            new = subject.file(other, shard)
        else:
            assert isinstance(case.harm, Harm)
            new = harmed(old, case.harm, case.region.start, case.region.end, before.get(neighbour))
            if case.harm is Harm.SWAP:
                new = subject.file(known, neighbour) if neighbour not in before else before[neighbour]
        subject.spoil(known, shard, new)
        changed += [shard] if new != old else []
    return before, tuple(changed)


def recoverable(subject: Subject, known: KnownPack, whole: dict[int, bytes]) -> bool:
    """Whether k right blocks with their right checksums are left at every place: looked up in the files."""
    blocks, k = known.layout.blocks, subject.scheme.k
    data = len(next(iter(whole.values()))) - blocks * BLOCK_BYTES
    right = [len(known.virtual)] * blocks
    for place in known.places.values():
        name = shard_name(known.pack, place.shard, place.attempt)
        file = subject.rig.memories[place.store].medium.get(name, b"")
        good = subject.expected(known, place.shard)
        for block in range(blocks):
            entry, at = 64 + 4 * block, data + BLOCK_BYTES * block
            right[block] += (
                file[entry : entry + 4] == good[entry : entry + 4]
                and file[at : at + BLOCK_BYTES] == good[at : at + BLOCK_BYTES]
            )
    return min(right) >= k


async def run_case(subject: Subject, case: Case) -> None:
    before, changed = await do_harm(subject, case)
    known = await subject.known()
    untouched = {shard: place for shard, place in known.places.items() if shard not in case.shards}
    if recoverable(subject, known, before):
        assert await subject.read() == subject.bodies[0]
        state, faults = await subject.verify()
        assert faults == set(changed)
        assert state is (PackHealth.DEGRADED if changed else PackHealth.WHOLE)
        await subject.mend()
    else:
        assert len(changed) > subject.scheme.m
        await read_or_be_told(subject, known)
        state, faults = await subject.verify()
        assert (state, faults) == (PackHealth.LOST, set(changed))
        await subject.mend()
        # Nothing was made up, and nothing that is good was touched.
        assert (await subject.known()).row.places == known.row.places
        await subject.check_files(but=changed)
        # When one of them is good again, all is.
        back = changed[0]
        subject.spoil(known, back, before[back])
        for shard in changed[1:]:
            subject.repair.report(known.pack, shard, "look again")
        await until_mended(subject)
    after = await subject.known()
    assert await subject.verify() == (PackHealth.WHOLE, set())
    assert await subject.read() == subject.bodies[0]
    assert await subject.read(1) == subject.bodies[1]
    await subject.check_files()
    assert {shard: after.places[shard] for shard in untouched} == untouched


async def read_or_be_told(subject: Subject, known: KnownPack) -> None:
    """An error that names the pack; or right bytes, where what is lost is not what was asked for."""
    told = ""
    try:
        assert await subject.read() == subject.bodies[0]
    except TooManyShardsLost as error:
        told = str(error)
    assert not told or known.pack.hex() in told
    subject.refused += bool(told)


async def until_mended(subject: Subject) -> None:
    """What could not be mended is tried again ever less often: for as long as that takes."""
    for _ in range(200):
        await subject.rig.clock.sleep(1)
        await subject.step()
        if not subject.repair.waiting:
            break
    await subject.mend()


@pytest.mark.parametrize("shape", SHAPES)
async def test_every_region_of_a_shard_spoiled_in_one_in_m_and_in_more_shards(shape: str) -> None:
    subject = subject_of(shape)
    await subject.write()
    count = 0
    for case in cases(await subject.known(), subject.scheme, shape):
        try:
            await run_case(subject, case)
        except Exception as error:
            raise AssertionError(f"{shape}: {case.name}: {error!r}") from error
        count += 1
    assert count > 150
    assert subject.refused > 10


@pytest.mark.parametrize("shape", ["a short stripe", "two stripes", "wide"])
async def test_all_shards_spoiled_at_different_places_are_put_together_block_by_block(shape: str) -> None:
    """More shards are wrong than the scheme can lose, but never so many at one place."""
    subject = subject_of(shape)
    await subject.write()
    known = await subject.known()
    blocks, m = known.layout.blocks, subject.scheme.m
    spoiled = list(known.places)[: blocks * m]
    assert len(spoiled) > m
    for number, shard in enumerate(spoiled):
        file = subject.file(known, shard)
        at = len(file) - (1 + number // m) * BLOCK_BYTES
        subject.spoil(known, shard, harmed(file, Harm.FLIP, at, at + BLOCK_BYTES))
    assert await subject.read() == subject.bodies[0]
    assert await subject.verify() == (PackHealth.DEGRADED, set(spoiled))
    await subject.mend()
    assert await subject.verify() == (PackHealth.WHOLE, set())
    await subject.check_files()
