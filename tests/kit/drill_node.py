"""A node as its own process, whose stores misbehave as they are told to while it runs.

    python -m tests.kit.drill_node serve --port N

It is what `holdfast serve` runs, with `FaultyStore` between each store and the house, `faulty_index` below
the index on the same disks, and real files below both.
Orders come through the named pipe `faults` in the working directory, one JSON object a line:
`{"slot": "disk3", "hang": true}` sets fields of that slot's script, `{"slot": "disk3", "well": true}` ends
all that is wrong with it.
"""

import json
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from holdfast.base.checksums import Buffer
from holdfast.base.clock import Clock, SystemClock
from holdfast.base.randomness import Randomness, SystemRandomness
from holdfast.node.config import Given, make_config
from holdfast.node.node import Node
from holdfast.node.running import run_node
from holdfast.stores.faulty import FaultScript, FaultyStore
from holdfast.stores.port import Range, Store
from tests.kit import faulty_index
from tests.kit.unsynced import record

PIPE = "faults"


class LyingScript(FaultScript):
    """`lies`: what is put is acknowledged and never comes to the medium."""

    lies = False


class LyingStore(FaultyStore):
    """A store that, while its script says so, keeps in memory what it says is durable: a power cut takes
    it all."""

    def __init__(self, inner: Store, script: LyingScript, clock: Clock, randomness: Randomness) -> None:
        super().__init__(inner, script, clock=clock, randomness=randomness)
        self._lying = script
        self._believed: dict[str, bytes] = {}

    async def put(
        self, name: str, data: Sequence[Buffer], *, timeout_s: float, reserve_share: float = 0.0
    ) -> None:
        if self._lying.lies:
            self._believed[name] = b"".join(data)
        else:
            await super().put(name, data, timeout_s=timeout_s, reserve_share=reserve_share)

    async def get(
        self, name: str, ranges: Sequence[Range], *, timeout_s: float, uncached: bool = False
    ) -> list[Buffer]:
        if (found := self._believed.get(name)) is not None:
            return [found[offset : offset + length] for offset, length in ranges]
        return await super().get(name, ranges, timeout_s=timeout_s, uncached=uncached)

    async def size(self, name: str, *, timeout_s: float) -> int:
        if (found := self._believed.get(name)) is not None:
            return len(found)
        return await super().size(name, timeout_s=timeout_s)

    async def delete(self, name: str, *, timeout_s: float) -> None:
        if self._believed.pop(name, None) is None:
            await super().delete(name, timeout_s=timeout_s)


class Scripts:
    """What is wrong with each slot, told through the pipe."""

    def __init__(self, pipe: Path) -> None:
        self._pipe = pipe
        self._by_slot: dict[str, LyingScript] = {}

    def of(self, slot: str) -> LyingScript:
        """The script of a slot, the same whichever disk is in it."""
        return self._by_slot.setdefault(slot, LyingScript())

    def follow(self) -> None:
        """Do what the pipe says, for ever. It is open for writing, too, and so never ends: what was written
        between an end and the next opening would be lost."""
        with os.fdopen(os.open(self._pipe, os.O_RDWR)) as orders:
            for line in orders:
                self._carry_out(json.loads(line))

    def _carry_out(self, order: dict[str, object]) -> None:
        script = self.of(str(order.pop("slot")))
        if order.pop("well", False):
            order = {**vars(LyingScript()), **order}
        for name, value in order.items():
            kind = type(getattr(script, name))
            setattr(script, name, kind(value) if isinstance(value, list) else value)


def main() -> None:
    """Serve until stopped."""
    record(Path.cwd() / "holdfast-data")
    scripts = Scripts(Path.cwd() / PIPE)
    threading.Thread(target=scripts.follow, daemon=True).start()
    clock, randomness = SystemClock(), SystemRandomness()

    faulty_index.install(scripts.of, randomness)

    def wrap(slot: str, store: Store) -> Store:
        return LyingStore(store, scripts.of(slot), clock, randomness)

    def ready(node: Node) -> None:
        print(f"serves S3 at {node.endpoint}\nCtrl-C stops it", flush=True)  # noqa: T201

    port = int(sys.argv[sys.argv.index("--port") + 1])
    run_node(
        make_config([Given(port=port)], Path.cwd()),
        os.environ,
        clock,
        randomness,
        on_ready=ready,
        on_stopping=lambda: None,
        wrap=wrap,
    )


if __name__ == "__main__":
    main()
