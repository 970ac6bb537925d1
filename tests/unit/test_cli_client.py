"""What commands that ask a running node say when they cannot."""

import os
from pathlib import Path

import pytest

from holdfast.base.clock import SystemClock
from holdfast.base.errors import InvalidInput
from holdfast.cli.client import NodeClient
from holdfast.node.config import Given, make_config
from holdfast.node.runtime import DataLock, Runtime


def test_who_asks_a_node_of_a_cluster_without_its_file_is_told_to_name_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HOLDFAST_ACCESS_KEY_ID", raising=False)
    monkeypatch.delenv("HOLDFAST_SECRET_ACCESS_KEY", raising=False)
    lock = DataLock(tmp_path)
    lock.publish(Runtime("http://127.0.0.1:9", "us-east-1", os.getpid(), 1.0))
    with pytest.raises(InvalidInput, match="--config"):
        NodeClient(make_config([Given(data=tmp_path)], tmp_path), SystemClock())
    lock.release()
