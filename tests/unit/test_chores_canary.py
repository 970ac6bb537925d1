"""The canary: it goes through stores and index for real, nobody sees it, and nothing of it stays."""

from collections.abc import Sequence

import pytest

from holdfast.base.errors import HoldfastError
from holdfast.base.ids import PackId, VersionId
from holdfast.base.randomness import SeededRandomness
from holdfast.chores.canary import BYTES, OWNER, ROW, Canary
from holdfast.chores.collect import Collect, Sweep
from holdfast.index.memory import MemoryIndex
from holdfast.index.port import KEY_BYTES_MAX, Outcome, Row, Transaction, Unknown
from holdfast.objects.heads import dead_puts
from holdfast.packs.disposal import Disposal
from holdfast.scheme import Scheme
from tests.kit.rig import Rig, build_rig
from tests.kit.virtual import VirtualClock

pytestmark = pytest.mark.virtual
SCHEME = Scheme(4, 2)


def canary(rig: Rig) -> Canary:
    return Canary(rig.index, rig.packs, rig.clock, SeededRandomness("canary"), SCHEME)


async def rows(rig: Rig) -> list[bytes]:
    found = await rig.index.scan(b"", b"\xff" * KEY_BYTES_MAX, limit=1000)
    return [row.key for row in found if isinstance(row, Row)]


async def shards(rig: Rig) -> int:
    return sum([len(await memory.list("", limit=1000, timeout_s=1)) for memory in rig.memories.values()])


async def collected(rig: Rig) -> None:
    """Let the chores of deletion do all there is to do; then nothing may be left."""
    await rig.packs.settler.close()
    for chore in (
        Collect(rig.index, rig.packs.rows, rig.packs.reader.in_use),
        Sweep(Disposal(rig.attached, rig.index)),
    ):
        while await chore.step():
            pass
    assert [row for row in await rows(rig) if not row.startswith(b"buried/")] == []
    assert await shards(rig) == 0


async def test_it_writes_reads_and_leaves_nothing_behind() -> None:
    rig = build_rig()
    for _ in range(3):
        took_s = await canary(rig).send()
        assert took_s > 0
    assert await shards(rig) > 0
    assert not any(row.startswith((b"bucket/", b"head/", ROW)) for row in await rows(rig))
    await collected(rig)


async def test_it_fails_when_too_few_stores_can_be_written_and_comes_back_when_they_can() -> None:
    rig = build_rig()
    sender = canary(rig)
    for script in rig.scripts.values():
        script.vanished = True
    with pytest.raises(HoldfastError):
        await sender.send()
    for script in rig.scripts.values():
        script.vanished = False
    for store in rig.stores:
        rig.health.probed(store, None, rig.clock.monotonic())
    await sender.send()


async def left_over(rig: Rig) -> PackId:
    """The pack of a canary whose process ended after it had written."""

    class CutOff(Canary):
        async def _settle(self, appended: object) -> int:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await CutOff(rig.index, rig.packs, rig.clock, SeededRandomness("cut"), SCHEME).send()
    (row,) = [row for row in await rows(rig) if row.startswith(b"pack/")]
    return PackId(bytes.fromhex(row.removeprefix(b"pack/").decode()))


async def test_what_a_crash_leaves_of_one_is_let_go_by_the_next() -> None:
    rig = build_rig()
    await left_over(rig)
    assert ROW in await rows(rig)
    await canary(rig).send()
    await collected(rig)


async def test_what_a_crash_leaves_goes_without_another_one_too() -> None:
    rig = build_rig()
    await left_over(rig)
    tidying = canary(rig)
    assert not tidying.tidied
    await tidying.tidy()
    assert tidying.tidied
    await collected(rig)


async def test_what_an_audit_has_let_go_is_not_let_go_again() -> None:
    rig = build_rig()
    pack = await left_over(rig)
    closed, taken = dead_puts({pack: 0}, OWNER, OWNER), dead_puts({pack: BYTES}, VersionId("audit"), "audit")
    await rig.index.commit([Transaction((), (*closed, *taken))])
    await canary(rig).tidy()
    assert ROW not in await rows(rig)
    await collected(rig)


class Doubtful(MemoryIndex):
    """An index whose answer to the next commits of the canary is lost, landed or not."""

    lose = 0
    lands = True

    async def commit(self, transactions: Sequence[Transaction]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for transaction in transactions:
            if self.lose and any(key == ROW for key, _ in transaction.puts):
                self.lose -= 1
                if self.lands:
                    await super().commit([transaction])
                outcomes.append(Unknown("lost"))
            else:
                outcomes += await super().commit([transaction])
        return outcomes


@pytest.mark.parametrize("lands", [True, False])
@pytest.mark.parametrize("lose", [1, 2, 3])
async def test_an_answer_that_was_lost_leaves_nothing_either(lands: bool, lose: int) -> None:
    clock = VirtualClock()
    index = Doubtful(clock)
    index.lose, index.lands = lose, lands
    rig = build_rig(clock=clock, index=index)
    sender = canary(rig)
    for _ in range(4):
        try:
            await sender.send()
        except HoldfastError:
            continue
    await sender.send()
    await collected(rig)
