"""What goes wrong among several machines: one of them at a time, ways between them, the index, clocks.

At most one machine is in trouble from one proof of wholeness to the next, because a scheme may not be able to
lose more than that; the index and the network may be in trouble at any time, and cost no data.
"""

from enum import Enum

from holdfast.base.randomness import SeededRandomness
from tests.simulation.cluster_network import CLIENTS, INDEX
from tests.simulation.cluster_world import ClusterWorld, Machine
from tests.simulation.faults import DiskFault, begin
from tests.simulation.faults import end as end_disk


class MachineFault(Enum):
    """What happens to one machine."""

    CRASH = "crash"
    CRASH_LOOP = "crash again and again"
    STOP = "stopped and continued"
    CUT_FROM_INDEX = "cut from the index"
    CUT_FROM_INDEX_ONE_WAY = "commits arrive, answers do not"
    CUT_FROM_PEERS = "cut from its peers"
    CUT_ONE_WAY = "cut one way"
    CUT_OFF = "cut from everybody but clients"
    DISKS = "disks"
    CLOCK = "clock jumps"


class RegionFault(Enum):
    """What happens to all machines of a region at once."""

    CRASH = "crash"
    STOP = "stopped and continued"
    CUT = "cut from all others"


class IndexFault(Enum):
    """What happens to the index."""

    ELECTION = "election"
    LATE = "commits late"
    LOSSY = "answers lost"


DISK_FAULTS = tuple(
    fault for fault in DiskFault if fault not in (DiskFault.OLD_IMAGE, DiskFault.REPLACED, DiskFault.LIES)
)


class ClusterTroubles:
    """Carries faults out."""

    def __init__(self, world: ClusterWorld) -> None:
        self._world = world
        self.counts: dict[str, int] = {}

    def _count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1
        self._world.trace.note("trouble:", what)

    async def machine(
        self, machine: Machine, fault: MachineFault, chance: SeededRandomness, seconds: float
    ) -> None:
        """A machine is in trouble for a while, and well again afterwards, but for what it lost."""
        world, network, name = self._world, self._world.network, machine.name
        self._count(f"machine {fault.value}")
        world.trace.note(name, fault.value, f"{seconds:.3f}")
        peers = [other.name for other in world.machines if other is not machine]
        match fault:
            case MachineFault.CRASH:
                await machine.crash()
                await world.clock.sleep(seconds)
                await machine.start()
            case MachineFault.CRASH_LOOP:
                for _ in range(3):
                    await machine.crash()
                    await machine.start()
                    await world.clock.sleep(seconds * chance.fraction())
            case MachineFault.STOP:
                machine.stop()
                await world.clock.sleep(seconds)
                machine.proceed()
            case MachineFault.CLOCK:
                machine.clock.jump((7200.0, -7200.0)[chance.below(2)])
                await world.clock.sleep(seconds)
            case MachineFault.DISKS:
                for slot in machine.slots:
                    begin(slot, DISK_FAULTS[chance.below(len(DISK_FAULTS))], chance)
                await world.clock.sleep(seconds)
                for slot in machine.slots:
                    end_disk(slot)
            case _:
                self._cut(name, peers, fault, chance)
                await world.clock.sleep(seconds)
                network.heal()
        if not machine.is_up and machine.process is None:
            await machine.start()

    def _cut(self, name: str, peers: list[str], fault: MachineFault, chance: SeededRandomness) -> None:
        network = self._world.network
        match fault:
            case MachineFault.CUT_FROM_INDEX:
                network.part(name, INDEX)
            case MachineFault.CUT_FROM_INDEX_ONE_WAY:
                network.part(INDEX, name, both=False)
            case MachineFault.CUT_FROM_PEERS:
                for peer in peers:
                    network.part(name, peer)
            case MachineFault.CUT_ONE_WAY:
                for peer in [*peers, CLIENTS]:
                    if chance.below(2):
                        network.part(name, peer, both=False)
                    else:
                        network.part(peer, name, both=False)
            case _:
                for peer in [*peers, INDEX]:
                    network.part(name, peer)

    async def lose(self, region: int, fault: RegionFault) -> None:
        """A region goes, until `return_`."""
        world = self._world
        self._count(f"region {fault.value}")
        for machine in self._of(region):
            match fault:
                case RegionFault.CRASH:
                    await machine.crash()
                case RegionFault.STOP:
                    machine.stop()
                case RegionFault.CUT:
                    for other in world.machines:
                        if world.region(other.name) != region:
                            world.network.part(machine.name, other.name)
                    world.network.part(machine.name, INDEX)

    async def return_(self, region: int) -> None:
        """It is there again, its nodes started anew: a process that could not ask the index for longer than
        it is patient does not know for an hour whether a pack was made, and graves wait for it."""
        self._world.trace.note("region", region, "returns")
        self._world.network.heal()
        for machine in self._of(region):
            machine.proceed()
            await machine.crash()
            await machine.start()

    def _of(self, region: int) -> list[Machine]:
        return [machine for machine in self._world.machines if self._world.region(machine.name) == region]

    async def index(self, fault: IndexFault, chance: SeededRandomness, seconds: float) -> None:
        """The index is in trouble for a while."""
        service = self._world.service
        self._count(f"index {fault.value}")
        match fault:
            case IndexFault.ELECTION:
                service.electing = True
                await self._world.clock.sleep(min(seconds, 4.0))
                service.electing = False
            case IndexFault.LATE:
                service.late = 0.3
                await self._world.clock.sleep(seconds)
                service.late = 0.0
            case IndexFault.LOSSY:
                service.lossy = 0.3
                await self._world.clock.sleep(seconds)
                service.lossy = 0.0

    async def weather(self, seconds: float) -> None:
        """Packets are lost, delayed and repeated."""
        network = self._world.network
        self._count("network bad")
        network.bad, network.slow_s = 0.05, 0.02
        await self._world.clock.sleep(seconds)
        network.bad = network.slow_s = 0.0
