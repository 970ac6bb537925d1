"""What health promises, in seconds: slow stores sit out, hung ones are down, flapping ones are damped.

Real health, real decorators, scripted faults, a virtual clock. Times are counted from the moment of the fault
to the change of state, at any load and at none, and whenever it happens between two looks.
"""

import pytest

from holdfast.health import StoreState
from holdfast.health.damping import REST_FIRST_S, REST_MAX_S
from holdfast.stores.faulty import FaultScript
from holdfast.stores.port import StoreOverdue
from tests.kit.virtual import run_virtual
from tests.kit.watched_stores import CALL_TIMEOUT_S, WatchedStores

WITHIN_S = 2.0
LOADS = (0.0, 0.3, 3.0, 40.0)
"""Writes a second; 0 is an idle node."""

QUICK, SLUGGISH = (0.0005, 0.002), (0.004, 0.016)
"""Latencies of solid-state and of spinning disks."""

OUT_OF_USE = (StoreState.SITTING_OUT, StoreState.DOWN)


async def _stores(seed: int, load: float, latency_s: tuple[float, float], cap: int = 2) -> WatchedStores:
    """Stores that have been at work for a while, up to a moment that is not that of a look."""
    stores = WatchedStores(seed, cap=cap, latency_s=latency_s)
    if load:
        stores.begin_load(load)
    await stores.clock.sleep(4.0 + stores.chance.fraction())
    assert stores.events == []
    return stores


@pytest.mark.parametrize("latency_s", [QUICK, SLUGGISH])
@pytest.mark.parametrize("load", LOADS)
def test_a_disk_twenty_times_slower_sits_out_in_time(load: float, latency_s: tuple[float, float]) -> None:
    async def run(seed: int) -> None:
        stores = await _stores(seed, load, latency_s)
        slow = stores.ids[seed % 6]
        stores.scripts[slow].delay_s = (19 * latency_s[0], 19 * latency_s[1])
        await stores.until(slow, StoreState.SITTING_OUT, within_s=WITHIN_S)
        assert not stores.health.readable(slow)
        assert not stores.health.waited_for(slow)
        assert stores.out == [slow]
        assert stores.events[-1].detector == "latency fence"
        assert {"operation", "latency", "fence"} <= stores.events[-1].evidence.keys()
        await stores.close()

    for seed in range(4):
        run_virtual(run(seed))


@pytest.mark.parametrize("latency_s", [QUICK, SLUGGISH])
@pytest.mark.parametrize("load", LOADS)
def test_a_hung_disk_is_down_in_time(load: float, latency_s: tuple[float, float]) -> None:
    async def run(seed: int) -> None:
        stores = await _stores(seed, load, latency_s)
        hung = stores.ids[seed % 6]
        stores.scripts[hung].hang = True
        await stores.until(hung, StoreState.DOWN, within_s=WITHIN_S)
        assert stores.out == [hung]
        stores.scripts[hung].hang = False
        # The calls that hang hold all its places until their deadlines, and no longer.
        await stores.until(hung, StoreState.HEALTHY, within_s=CALL_TIMEOUT_S + 10.0)
        await stores.close()

    for seed in range(4):
        run_virtual(run(seed))


def test_one_that_hangs_while_another_is_slow_is_down_in_time() -> None:
    async def run(seed: int) -> None:
        stores = await _stores(seed, 3.0, QUICK)
        slow, hung = stores.ids[:2]
        stores.scripts[slow].delay_s = (0.010, 0.040)
        stores.scripts[hung].hang = True
        await stores.until(hung, StoreState.DOWN, within_s=WITHIN_S)
        await stores.until(slow, StoreState.SITTING_OUT, within_s=0.25)
        assert sorted(stores.out) == [slow, hung]
        await stores.close()

    for seed in range(4):
        run_virtual(run(seed))


def test_a_slow_disk_stays_out_while_it_is_slow_and_returns_over_probation_when_it_is_not() -> None:
    async def run() -> None:
        stores = await _stores(1, 3.0, QUICK)
        slow = stores.ids[3]
        stores.scripts[slow].delay_s = (0.010, 0.040)
        await stores.until(slow, StoreState.SITTING_OUT, within_s=WITHIN_S)
        await stores.clock.sleep(5 * REST_FIRST_S)
        assert stores.health.state(slow) is StoreState.SITTING_OUT
        assert len(stores.events) == 1, "nobody has to try it out on clients to see that it is slow"
        stores.scripts[slow].delay_s = (0.0, 0.0)
        await stores.until(slow, StoreState.PROBATION, within_s=REST_MAX_S)
        await stores.until(slow, StoreState.HEALTHY, within_s=10.0)
        await stores.close()

    run_virtual(run())


def _hang(script: FaultScript, on: bool) -> None:
    script.hang = on


def _fail(script: FaultScript, on: bool) -> None:
    script.read_errors = script.write_errors = float(on)


def _crawl(script: FaultScript, on: bool) -> None:
    script.delay_s = (0.010, 0.040) if on else (0.0, 0.0)


@pytest.mark.parametrize("load", [0.0, 0.5])
@pytest.mark.parametrize("fault", [_hang, _fail, _crawl])
def test_a_flapping_disk_changes_state_ever_more_seldom(fault, load: float) -> None:  # type: ignore[no-untyped-def]
    async def run() -> tuple[int, int]:
        stores = await _stores(7, load, QUICK)
        flapping = stores.ids[2]
        changes = []
        for _ in range(2):
            before = len(stores.events)
            for _ in range(50):
                fault(stores.scripts[flapping], True)
                await stores.clock.sleep(2.5)
                fault(stores.scripts[flapping], False)
                await stores.clock.sleep(3.5)
            changes.append(len(stores.events) - before)
        assert {event.store for event in stores.events} == {flapping}
        fault(stores.scripts[flapping], False)
        await stores.until(flapping, StoreState.HEALTHY, within_s=REST_MAX_S + 20.0)
        await stores.close()
        return changes[0], changes[1]

    first, second = run_virtual(run())
    assert first <= 40, "fifty times up and down in five minutes, and few of them get through"
    assert second <= 10, "and next to none in the five minutes after"


def test_one_that_fails_every_third_call_is_not_relied_on_until_it_does_not() -> None:
    async def run() -> None:
        stores = await _stores(3, 5.0, QUICK)
        flaky = stores.ids[4]
        stores.scripts[flaky].read_errors = stores.scripts[flaky].write_errors = 0.35
        await stores.until(flaky, StoreState.SUSPECT, StoreState.DOWN, within_s=10.0)
        await stores.clock.sleep(60.0)
        before = len(stores.events)
        await stores.clock.sleep(120.0)
        assert len(stores.events) - before <= 8
        stores.scripts[flaky].read_errors = stores.scripts[flaky].write_errors = 0.0
        await stores.until(flaky, StoreState.HEALTHY, within_s=REST_MAX_S)
        await stores.close()

    run_virtual(run())


def test_when_every_disk_hangs_at_once_the_observer_is_distrusted() -> None:
    async def run() -> None:
        stores = await _stores(4, 3.0, QUICK)
        for script in stores.scripts.values():
            script.hang = True
        await stores.clock.sleep(4.0)
        assert stores.out == []
        for script in stores.scripts.values():
            script.hang = False
        await stores.clock.sleep(20.0)
        assert [store for store in stores.ids if stores.health.state(store) is not StoreState.HEALTHY] == []
        await stores.close()

    run_virtual(run())


def test_a_hung_call_ends_at_its_deadline_and_its_store_takes_calls_again_afterwards() -> None:
    async def run() -> None:
        stores = WatchedStores(5)
        hung = stores.ids[0]
        stores.scripts[hung].hang = True
        for _ in range(20):
            began = stores.clock.monotonic()
            with pytest.raises(StoreOverdue):
                await stores.stores[hung].size("blob", timeout_s=0.5)
            assert stores.clock.monotonic() - began == pytest.approx(0.5)
        stores.scripts[hung].hang = False
        await stores.stores[hung].put("blob", [b"held"], timeout_s=0.5)
        assert await stores.stores[hung].size("blob", timeout_s=0.5) == 4
        await stores.close()

    run_virtual(run())
