"""The regions that corruption tests spoil cover their files to the last byte, and each byte once."""

import pytest

from holdfast.packs.format import file_bytes
from tests.kit.regions import assert_covers, shard_regions


@pytest.mark.parametrize("blocks", [1, 2, 3, 97, 1008, 1009, 4096])
def test_the_regions_of_a_shard_file_cover_it(blocks: int) -> None:
    assert_covers(shard_regions(blocks), file_bytes(blocks))
