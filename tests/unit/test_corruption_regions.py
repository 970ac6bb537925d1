"""The regions that corruption tests spoil cover their files to the last byte, and each byte once."""

import pytest

from holdfast.packs.format import file_bytes
from tests.kit.regions import Region, shard_regions


def assert_covers(regions: list[Region], size: int) -> None:
    """From the first byte to the last without gaps."""
    at = 0
    for region in regions:
        assert region.start == at, f"{region.name} begins at {region.start}, the one before ends at {at}"
        assert region.end > region.start, region.name
        at = region.end
    assert at == size


@pytest.mark.parametrize("blocks", [1, 2, 3, 97, 1008, 1009, 4096])
def test_the_regions_of_a_shard_file_cover_it(blocks: int) -> None:
    assert_covers(shard_regions(blocks), file_bytes(blocks))
