"""Buckets at servers that are not ours keep the promises of the store port: the port's own tests once more.

Moto stands in for Amazon S3. Our own S3 is among the port's adapters; scripted faults are in the unit tests.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path

import pytest

from holdfast.stores.port import Store
from tests.conformance.test_store_port import (  # noqa: F401
    Making,
    all_of_them,
    bare,
    test_a_blob_comes_back_as_it_was_put,
    test_a_blob_that_is_not_there_is_missing,
    test_a_call_without_time_ends_at_once,
    test_a_listing_is_complete_and_in_order_at_every_page_size,
    test_a_name_put_again_after_its_deletion_has_the_new_bytes,
    test_a_name_that_is_none_is_our_bug,
    test_a_range_that_ends_behind_the_blob_is_truncated,
    test_after_close_every_call_fails,
    test_blobs_of_every_size,
    test_delete_is_for_good_and_may_be_repeated,
    test_many_calls_at_once_all_succeed,
    test_many_pieces_are_laid_end_to_end,
    test_of_concurrent_puts_of_one_name_exactly_one_wins,
    test_put_never_overwrites,
    test_ranges_are_exact_and_in_the_order_asked,
    test_reads_beside_deletions_are_right_or_missing,
    test_the_callers_buffer_may_be_reused_after_put,
    test_usage_and_probe,
    test_what_is_peeked_is_what_get_would_answer,
)
from tests.kit.clouds import closing, cloud_store, make_bucket, moto

pytestmark = pytest.mark.slow

_buckets = count()


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with moto() as port:
        yield port


@pytest.fixture
def adapter(port: int) -> Making:
    @asynccontextmanager
    async def bucket(path: Path) -> AsyncIterator[Store]:
        name = f"bucket-{next(_buckets)}"
        make_bucket(port, name)
        async with closing(cloud_store(port, name)) as store:
            yield store

    return bucket


@pytest.fixture(params=(bare, all_of_them), ids=lambda decoration: decoration.__name__)
def making(request: pytest.FixtureRequest, adapter: Making) -> Making:
    @asynccontextmanager
    async def decorated(path: Path) -> AsyncIterator[Store]:
        async with adapter(path) as store:
            yield request.param(store)

    return decorated


async def test_it_was_seen_not_to_write_over_names(adapter: Making, tmp_path: Path) -> None:
    async with adapter(tmp_path) as store:
        await store.prove_create_only(timeout_s=60)  # type: ignore[attr-defined]
        assert await store.list("", limit=10, timeout_s=60) == []
