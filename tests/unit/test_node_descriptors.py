"""Descriptors: neither clients nor shards may take them all."""

import pytest

from holdfast.node.descriptors import CONNECTIONS_MAX, KEPT_OPEN_MAX, connections_allowed, kept_open


@pytest.mark.parametrize("stores", [1, 6, 22])
@pytest.mark.parametrize("files", [256, 1024, 4096, 65_536])
def test_clients_and_shards_together_leave_some_to_the_rest(files: int, stores: int) -> None:
    connections, kept = connections_allowed(files), kept_open(files, stores)
    assert 1 <= connections <= CONNECTIONS_MAX
    assert 1 <= kept <= KEPT_OPEN_MAX
    assert connections + 2 * stores * kept <= files - files // 16


def test_where_many_may_be_open_only_our_own_limits_count() -> None:
    assert connections_allowed(65_536) == CONNECTIONS_MAX
    assert kept_open(65_536, 12) == KEPT_OPEN_MAX
