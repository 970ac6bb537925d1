"""A process that commits to an index on real files and says on stdout what was acknowledged.

    python -m tests.kit.index_child FOLDER MEMBERS

Each line is `key revision`, written after the acknowledgement; `ready` comes first, `fenced` last when
another process has taken over. It goes on until it is killed.
"""

import asyncio
import os
import sys
from pathlib import Path

from holdfast.base.clock import SystemClock
from holdfast.base.errors import Fenced
from holdfast.base.randomness import SystemRandomness
from holdfast.index.port import ABSENT, Committed, Expect, Index, Transaction, Unknown
from tests.kit.index_files import open_files


async def client(index: Index, number: int, start: int) -> None:
    count = start
    while True:
        key = b"client/%d/%d" % (number, count)
        transaction = Transaction((Expect(key, ABSENT),), ((key, key * 20),))
        try:
            outcome = (await index.commit([transaction]))[0]
        except Fenced:
            outcome = Unknown("fenced")
        if isinstance(outcome, Unknown):
            os.write(1, b"fenced\n")
            return
        assert isinstance(outcome, Committed)
        os.write(1, b"%s %d\n" % (key, outcome.revision))
        count += 1


async def main() -> None:
    index = await open_files(Path(sys.argv[1]), int(sys.argv[2]), SystemClock(), SystemRandomness())
    os.write(1, b"ready\n")
    start = index.status().revision
    await asyncio.gather(*(client(index, number, start) for number in range(8)))


if __name__ == "__main__":
    asyncio.run(main())
