"""Clouds under test: stores in a bucket of a server that is not ours, or of our own."""

import subprocess
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from holdfast.base.clock import SystemClock
from holdfast.base.ids import StoreId
from holdfast.base.randomness import SeededRandomness
from holdfast.stores.cloud import CloudAddress, CloudOptions, CloudStore, S3Access, S3Credentials
from tests.kit.process import CLIENTS

CREDENTIALS = S3Credentials("HOLDFASTTESTKEY", "a/secret+for/tests=only")
_PATIENCE_S = 60.0


def cloud_store(port: int, bucket: str, prefix: str = "a/store", **options: Any) -> CloudStore:
    """The store in a bucket of the server on that port."""
    return CloudStore(
        StoreId("cloud"),
        CloudAddress(bucket, prefix),
        S3Access("us-east-1", f"http://127.0.0.1:{port}", CREDENTIALS),
        clock=SystemClock(),
        randomness=SeededRandomness("cloud"),
        options=CloudOptions(**options),
    )


@asynccontextmanager
async def closing(store: CloudStore) -> AsyncIterator[CloudStore]:
    """The store, closed with the block."""
    try:
        yield store
    finally:
        await store.close()


@contextmanager
def moto() -> Iterator[int]:
    """The port of a moto server, gone with the block."""
    child = Path(__file__).with_name("moto_child.py")
    process = subprocess.Popen(
        [CLIENTS / "python", child], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        _end(process)


def make_bucket(port: int, bucket: str) -> None:
    """At a server that asks for no signature."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/{bucket}", method="PUT")
    with urllib.request.urlopen(request, timeout=_PATIENCE_S):
        pass


def _end(process: "subprocess.Popen[Any]") -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
