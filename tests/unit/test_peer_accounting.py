"""What peers ask and get is counted, once each; and so is what is refused, by why it is."""

from typing import Any

import pytest

from holdfast.node.metrics import render
from holdfast.node.peer_accounting import PeerAccounts
from holdfast.node.peer_metrics import served_families
from holdfast.stores.peer import PeerIdentity, PeerRefused, PeerStore
from holdfast.stores.port import Range, ShardMissing
from tests.kit.peer_pair import pair, piped_client
from tests.kit.peers import CLUSTER
from tests.kit.pipes import PipeNetwork

pytestmark = pytest.mark.virtual

T = 10.0


async def test_each_request_counts_once_by_what_became_of_it() -> None:
    accounts = PeerAccounts()
    async with pair(observer=accounts) as both:
        await both.store.put("p.0.0", [b"x" * 1000], timeout_s=T)
        for _ in range(3):
            await both.store.get("p.0.0", [Range(0, 100)], timeout_s=T)
        with pytest.raises(ShardMissing):
            await both.store.get("p.0.1", [Range(0, 100)], timeout_s=T)
        await both.client.ping(timeout_s=T)
        assert both.server.in_flight == 0
    results = {call: account.results for call, account in accounts.calls.items()}
    assert results == {
        "hello": {"good": 1},
        "put": {"good": 1},
        "get": {"good": 3, "ShardMissing": 1},
        "ping": {"good": 1},
    }
    assert accounts.calls["put"].bytes_in == 1000 + 32
    assert accounts.calls["get"].bytes_out >= 3 * (100 + 32)
    assert sum(accounts.calls["get"].latency.counts) == 3, (
        "those that failed say nothing of how long one takes"
    )


@pytest.mark.parametrize(
    ("client", "reason"),
    [
        ({"secret": b"another secret, as long"}, "WrongSecret"),
        ({"identity": PeerIdentity("holdfast-other", "node-a")}, "ForeignCluster"),
        ({"node": "node-c"}, "OtherNode"),
    ],
)
async def test_who_is_refused_is_counted_by_reason(client: dict[str, Any], reason: str) -> None:
    accounts = PeerAccounts()
    network = PipeNetwork()
    async with pair(network=network, client=client, observer=accounts) as both:
        with pytest.raises(PeerRefused):
            await both.client.greet(timeout_s=T)
        with_none = piped_client(network)
        await with_none.greet(timeout_s=T)
        await with_none.close()
    assert {call: account.results for call, account in accounts.calls.items()} == {
        "hello": {reason: 1, "good": 1}
    }
    text = render(served_families(accounts.calls))
    assert f'holdfast_peer_refused_total{{reason="{reason}"}} 1\n' in text
    assert text.count("holdfast_peer_refused_total{") == 7
    assert sum(line.endswith(" 0") for line in text.splitlines() if "refused_total{" in line) == 6


async def test_a_request_that_was_changed_counts_under_no_call() -> None:
    accounts = PeerAccounts()
    async with pair(observer=accounts) as both:
        await both.client.ping(timeout_s=T)
        line = both.client._idle[0]
        assert line.session is not None
        line.session.next()  # the two sides count differently from now on
        await both.client.ping(timeout_s=T)
        assert await PeerStore(both.inner.id, both.client).list("", limit=10, timeout_s=T) == []
    assert accounts.calls["none"].results == {"Altered": 1}
    assert accounts.calls["ping"].results == {"good": 2}
    assert CLUSTER not in render(served_families(accounts.calls))
