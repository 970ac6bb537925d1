"""What a site answers its clients while it serves, when it ends, and afterwards."""

from collections.abc import Sequence

import pytest

from holdfast.index.memory import Fault, MemoryIndex, Mishap
from holdfast.index.port import ABSENT, Committed, Conflict, Expect, Outcome, Transaction, Unknown
from holdfast.sites.gate import NO_PAIR, GatedIndex, NotServing, Told
from holdfast.sites.rows import STATE_ROW
from holdfast.sites.standing import Role
from tests.kit.virtual import VirtualClock

pytestmark = pytest.mark.virtual


class Gate:
    """An index behind a gate, and what the gate is told."""

    def __init__(self, told: Told | None = None, *, reads: bool = False) -> None:
        self.inner = MemoryIndex(VirtualClock())
        self.told = told or self.become(Role.ACTIVE)
        self.lease = True
        self.index = GatedIndex(self.inner, lambda: self.told, lambda: self.lease, reads=reads)

    def become(self, role: Role) -> Told:
        """The site's role, as its index has it; this process may not have heard of it."""
        (outcome,) = self.inner.rows.apply([Transaction((), ((STATE_ROW, role.value.encode()),))])
        assert isinstance(outcome, Committed)
        return Told(role, outcome.revision)

    def value(self, key: bytes) -> bytes | None:
        row = self.inner.rows.get(key)
        return None if row is None else row.value

    async def put(self, *keys: bytes) -> Sequence[Outcome]:
        return await self.index.commit([Transaction((), ((key, b"v"),)) for key in keys])


async def test_the_active_site_commits_and_is_read() -> None:
    gate = Gate()
    first, second = await gate.put(b"a", b"b")
    assert isinstance(first, Committed)
    assert isinstance(second, Committed)
    (row,) = await gate.index.get([b"a"])
    assert row is not None
    (conflict,) = await gate.index.commit([Transaction((Expect(b"a", ABSENT),), ((b"a", b"w"),))])
    assert conflict == Conflict(b"a")


async def test_a_site_without_another_needs_no_lease() -> None:
    gate = Gate(NO_PAIR)
    (outcome,) = await gate.put(b"a")
    assert isinstance(outcome, Committed)


@pytest.mark.parametrize("role", [Role.STANDBY, Role.HANDING, Role.RETURNING])
async def test_other_sites_take_nothing_and_say_so(role: Role) -> None:
    gate = Gate()
    gate.told = gate.become(role)
    with pytest.raises(NotServing, match=role.value):
        await gate.put(b"a")
    with pytest.raises(NotServing):
        await gate.index.get([b"a"])
    with pytest.raises(NotServing):
        await gate.index.scan(b"", b"\xff", limit=1)
    assert gate.value(b"a") is None


async def test_a_standby_is_read_if_it_is_told_so() -> None:
    gate = Gate(reads=True)
    await gate.put(b"a")
    gate.told = gate.become(Role.STANDBY)
    (row,) = await gate.index.get([b"a"])
    assert row is not None
    with pytest.raises(NotServing):
        await gate.put(b"b")
    gate.told = gate.become(Role.RETURNING)
    with pytest.raises(NotServing):
        await gate.index.get([b"a"])


async def test_without_the_lease_nothing_is_taken_or_shown() -> None:
    gate = Gate()
    await gate.put(b"a")
    gate.lease = False
    with pytest.raises(NotServing, match="votes"):
        await gate.put(b"b")
    with pytest.raises(NotServing):
        await gate.index.get([b"a"])
    assert gate.value(b"b") is None


async def test_what_is_committed_when_the_lease_is_over_is_not_acknowledged() -> None:
    gate = Gate()
    looks = iter([True, False])
    gate.index = GatedIndex(gate.inner, lambda: gate.told, lambda: next(looks))
    (outcome,) = await gate.put(b"a")
    assert isinstance(outcome, Unknown)


async def test_what_is_read_when_the_lease_is_over_is_not_shown() -> None:
    gate = Gate()
    looks = iter([True, False])
    gate.index = GatedIndex(gate.inner, lambda: gate.told, lambda: next(looks))
    with pytest.raises(NotServing):
        await gate.index.get([b"a"])


async def test_a_process_that_has_not_heard_of_the_end_of_its_role_commits_nothing() -> None:
    gate = Gate()
    gate.become(Role.HANDING)
    with pytest.raises(NotServing):
        await gate.put(b"a", b"b")
    assert gate.value(b"a") is None


async def test_a_commit_that_lands_late_does_not_outlive_the_role() -> None:
    gate = Gate()
    gate.inner.faults.append(Fault(Mishap.APPLIED_LATER, 5.0))
    (outcome,) = await gate.put(b"a")
    assert isinstance(outcome, Unknown)
    gate.become(Role.STANDBY)
    await VirtualClock().sleep(10)
    assert gate.value(b"a") is None
    with pytest.raises(NotServing):
        await gate.put(b"a")
