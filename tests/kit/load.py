"""A client that knows what it was promised: random operations, and for each key what may be read now.

Each `Worker` has keys of its own. Before an operation, its outcome becomes possible; when it is acknowledged,
it is the only one possible. So after a crash, what is read must be among the possible, and among them only.
"""

import random
import threading
from collections.abc import Callable
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

BUCKET = "load"
PART_BYTES = 5 << 20

Content = bytes | None
"""What a key holds; None when it is not there."""


class Worker:
    """Does random operations on keys of its own until told to stop, or until the node is gone."""

    def __init__(self, number: int, client: Any, seed: str, possible: dict[str, list[Content]]) -> None:
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._client = client
        self._random = random.Random(f"{seed}/{number}")
        self._prefix = f"w{number}/"
        self._possible = possible
        self._stopping = threading.Event()
        self.acknowledged = 0
        self.refused: list[str] = []

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()

    def join(self) -> None:
        self._thread.join()

    def _work(self) -> None:
        while not self._stopping.is_set():
            key = f"{self._prefix}{self._random.randrange(40)}"
            choice = self._random.random()
            try:
                if choice < 0.70:
                    self._put(key)
                elif choice < 0.85:
                    self._delete(key)
                elif choice < 0.95:
                    self._copy(key)
                else:
                    self._multipart(key)
            except ClientError as error:
                # An answer that says no: never because of a crash, so never right.
                self.refused.append(f"{key}: {error}")
                return
            except BotoCoreError:
                return  # the node was killed

    def _do(self, key: str, content: Content, operation: Callable[[], object]) -> None:
        before = self._possible.setdefault(key, [None])
        self._possible[key] = [*before, content]
        operation()
        self._possible[key] = [content]
        self.acknowledged += 1

    def _put(self, key: str) -> None:
        size = self._random.choice((0, 1, 100, 4096, 30_000, 130_000, 1_000_000, 3_000_000))
        body = self._random.randbytes(size)
        self._do(key, body, lambda: self._client.put_object(Bucket=BUCKET, Key=key, Body=body))

    def _delete(self, key: str) -> None:
        self._do(key, None, lambda: self._client.delete_object(Bucket=BUCKET, Key=key))

    def _copy(self, key: str) -> None:
        source = f"{self._prefix}{self._random.randrange(40)}"
        held = self._possible.get(source, [None])
        if len(held) != 1 or held[0] is None:
            return
        where = {"Bucket": BUCKET, "Key": source}
        if source != key:
            self._do(key, held[0], lambda: self._client.copy_object(Bucket=BUCKET, Key=key, CopySource=where))

    def _multipart(self, key: str) -> None:
        parts = [
            self._random.randbytes(PART_BYTES),
            self._random.randbytes(self._random.randrange(1, 100_000)),
        ]
        upload = self._client.create_multipart_upload(Bucket=BUCKET, Key=key)["UploadId"]
        done = []
        for number, part in enumerate(parts, 1):
            stored = self._client.upload_part(
                Bucket=BUCKET, Key=key, UploadId=upload, PartNumber=number, Body=part
            )
            done.append({"PartNumber": number, "ETag": stored["ETag"]})
        self._do(
            key,
            b"".join(parts),
            lambda: self._client.complete_multipart_upload(
                Bucket=BUCKET, Key=key, UploadId=upload, MultipartUpload={"Parts": done}
            ),
        )


def read(client: Any, key: str) -> Content:
    """What a key holds now."""
    try:
        body: bytes = client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
    except client.exceptions.NoSuchKey:
        return None
    return body


def settle(client: Any, possible: dict[str, list[Content]]) -> int:
    """Read every key; fail for what was never promised, and know from now on what it is. The listing has
    to say the same. How many keys there are."""
    for key, contents in possible.items():
        found = read(client, key)
        assert found in contents, (
            f"{key} holds {_told(found)}, promised was {[_told(one) for one in contents]}"
        )
        possible[key] = [found]
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
    listed = {entry["Key"]: entry["Size"] for page in pages for entry in page.get("Contents", ())}
    held = {key: len(contents[0]) for key, contents in possible.items() if contents[0] is not None}
    assert listed == held
    return len(held)


def _told(content: Content) -> str:
    return "nothing" if content is None else f"{len(content)} bytes ({content[:4].hex()}…)"
