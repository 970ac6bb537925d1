"""The cluster's secret changes while a node runs: what follows from it, and what does not change it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from holdfast.base.errors import InvalidInput, Unavailable
from holdfast.cluster.telling import balancer_secret
from holdfast.node.credentials import Credentials, from_secret
from holdfast.node.secrets import LOOK_EVERY_S, Secrets, watch_file
from tests.kit.virtual import VirtualClock

pytestmark = pytest.mark.virtual

OLD, NEW, OTHER = b"o" * 32, b"n" * 32, b"x" * 32
T = TypeVar("T")


class AtOnce:
    """Does calls on the loop: a virtual clock knows nothing of threads."""

    busy = False
    closed = False

    def submit(self, call: Callable[[], T]) -> asyncio.Future[T]:
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)
        return future

    def close(self, last: Callable[[], None] | None = None) -> None:
        self.closed = True


class Watched:
    """A node's secrets, and the file that they follow."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.secrets = Secrets((OLD,), from_secret(OLD), "", made=True)
        self.told: list[str] = []
        self.proven: list[tuple[bytes, ...]] = []
        self.believed_when_proven: list[tuple[bytes, ...]] = []
        self.unproven: Exception | None = None
        self.clock = VirtualClock()

    async def says(self, content: bytes) -> None:
        """The file is this from now on, and was looked at twice."""
        new = self.file.with_name("new")
        new.write_bytes(content)
        new.chmod(0o600)
        new.replace(self.file)
        await self.clock.sleep(2.5 * LOOK_EVERY_S)

    async def prove(self, known: tuple[bytes, ...]) -> None:
        self.believed_when_proven.append(self.secrets.known)
        if self.unproven is not None:
            raise self.unproven
        self.proven.append(known)


@asynccontextmanager
async def watching(tmp_path: Path) -> AsyncIterator[Watched]:
    """A node that runs with the old secret."""
    watched, runner = Watched(tmp_path / "secret"), AtOnce()
    task = asyncio.create_task(
        watch_file(watched.file, watched.secrets, watched.prove, watched.clock, watched.told.append, runner)
    )
    await watched.says(OLD)
    assert watched.told == watched.proven == []
    yield watched
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert runner.closed


async def test_all_that_is_made_of_it_follows(tmp_path: Path) -> None:
    async with watching(tmp_path) as watched:
        secrets = watched.secrets
        access, balancers, roots = secrets.access, secrets.balancers, secrets.roots("holdfast-1")
        old, new = from_secret(OLD), from_secret(NEW)
        (root,) = roots.all()

        await watched.says(NEW + b"\nalso " + OLD + b"\n")
        assert secrets.known == (NEW, OLD)
        assert secrets.credentials == new
        assert set(access) == {old.access_key_id, new.access_key_id}
        assert balancers == [balancer_secret(NEW), balancer_secret(OLD)]
        assert roots.all()[1] is root, "connections go on"
        assert "2 secrets count" in watched.told[-1]

        await watched.says(NEW)
        assert watched.proven == [(NEW, OLD), (NEW,)]
        assert watched.believed_when_proven == [(NEW, OLD), (NEW, OLD)]
        assert access == {new.access_key_id: new.secret_access_key}
        assert balancers == [balancer_secret(NEW)]
        assert not roots.knows(root)
        assert len(watched.told) == 2
        assert not any("nnnn" in told or "oooo" in told for told in watched.told)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (NEW, "names none of the secrets that are known so far"),
        (b"", "has 0 bytes"),
        (NEW + b"\nalso short", "has 5 bytes"),
        (NEW + b"\nalso " + OLD + b"\nalso " + OTHER, "There are 3 secrets"),
    ],
)
async def test_a_file_that_cannot_be_used_changes_nothing_and_is_told_of_once(
    tmp_path: Path, content: bytes, said: str
) -> None:
    async with watching(tmp_path) as watched:
        await watched.says(content)
        assert watched.secrets.known == (OLD,)
        assert len(watched.told) == 1
        assert said in watched.told[0]
        watched.file.unlink()
        await watched.clock.sleep(2.5 * LOOK_EVERY_S)
        assert watched.secrets.known == (OLD,)
        assert "There is no file" in watched.told[1]
        await watched.says(NEW + b"\nalso " + OLD)
        assert watched.secrets.known == (NEW, OLD)


@pytest.mark.parametrize("why", [Unavailable("The index is away."), InvalidInput("It is another's.")])
async def test_nothing_is_let_go_before_the_row_was_told(tmp_path: Path, why: Exception) -> None:
    async with watching(tmp_path) as watched:
        await watched.says(NEW + b"\nalso " + OLD)
        watched.unproven = why
        await watched.says(NEW)
        assert set(watched.secrets.known) == {NEW, OLD}
        assert len(watched.secrets.access) == 2
        watched.unproven = None
        await watched.clock.sleep(2 * LOOK_EVERY_S)
        assert watched.secrets.known == (NEW,)


async def test_a_disk_that_fails_does_not_end_the_watch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Path) -> tuple[bytes, ...]:
        raise OSError(5, "Input/output error")

    async with watching(tmp_path) as watched:
        with monkeypatch.context() as broken:
            broken.setattr("holdfast.node.secrets.read_secrets", fail)
            await watched.clock.sleep(3 * LOOK_EVERY_S)
        assert watched.secrets.known == (OLD,)
        assert "Input/output error" in watched.told[0]
        await watched.says(NEW + b"\nalso " + OLD)
        assert watched.secrets.known == (NEW, OLD)


async def test_what_was_set_by_hand_stays(tmp_path: Path) -> None:
    given = Credentials("chosen", "by somebody")
    secrets = Secrets((OLD,), given, "the balancers' own", made=False)
    secrets.change((NEW, OLD))
    assert secrets.credentials == given
    assert secrets.access == {"chosen": "by somebody"}
    assert secrets.balancers == ["the balancers' own"]
