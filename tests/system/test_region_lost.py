"""A region is lost: its node and its member of the index hang, then die, under load, in a cluster whose
bucket is rs-2-1 over three regions. No request fails, nothing is lost, each acknowledgement survives a
region, and when the region is back all is whole again. That last takes half a minute and more, most of it
waiting, so only `make drill` runs it.
"""

import asyncio
import os
from pathlib import Path

import pytest

from holdfast.base.clock import SystemClock
from tests.kit.cluster_drill import ClusterDrill
from tests.kit.outcome import show
from tests.kit.up import UpProcess

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not os.environ.get("HOLDFAST_THOROUGH"), reason="`make drill` runs it"),
]

HANGS_S = 3.0


def survives(receipt: str) -> dict[str, int]:
    """What `x-holdfast-receipt` says of each level."""
    fields = dict(field.split("=", 1) for field in receipt.split("; "))
    return {level: int(count) for level, count in (one.split(":") for one in fields["survives"].split(","))}


async def test_a_region_is_lost_under_load(tmp_path: Path) -> None:
    with UpProcess(tmp_path) as cluster:
        drill = ClusterDrill(cluster, rate=4, seconds=0.5, seed="region")
        await drill.load.begin()
        ask = drill.through("n2")
        changed = await ask("POST", "/-/buckets/scheme?bucket=drill&scheme=rs-2-1")
        assert changed.status == 200, changed.body

        receipts: list[str] = []
        ended = asyncio.Event()

        async def collect() -> None:
            while not ended.is_set():
                put = await ask("PUT", "/drill/receipt", bytes(50_000))
                assert put.status == 200, put.body
                receipts.append(put.headers["x-holdfast-receipt"])
                await SystemClock().sleep(0.5)

        collecting = asyncio.create_task(collect())
        region = ("n1", "e1")
        outcome = await drill.run(
            "a region hangs and dies", drill.stop(*region), drill.kill(*region), seconds=HANGS_S
        )
        ended.set()
        await collecting
        outcome.check()
        assert receipts
        assert [receipt for receipt in receipts if survives(receipt)["region"] < 1] == []
        assert cluster.stop() == 0
    show([outcome])
