"""One real node for the clients of a module, on a free port, gone when the module is done."""

from collections.abc import Iterator

import pytest

from tests.kit.process import NodeProcess


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    with NodeProcess(tmp_path_factory.mktemp("node")) as running:
        yield running
