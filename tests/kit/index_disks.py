"""Disks for the index log that can be cut off, lie, hang, rot and be put back old, on virtual time.

`SimDisk` is what lies on the medium, `SimFolder` the port over it, `SimRunner` does calls at virtual times.
A `World` counts every operation that changes a medium and ends the process at the one it is told to:
before it, in the middle of it, or after it, with what was under way on the other disks torn at random.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import Any, TypeVar

from holdfast.base.randomness import SeededRandomness
from holdfast.index.sqlite.folder import Folder, MemberFailed, MemberFull
from holdfast.index.sqlite.runner import Runner

T = TypeVar("T")
SECTOR = 512


class Cut(Enum):
    """When the process ends, seen from the operation it ends at."""

    BEFORE = "before it"
    TORN = "in the middle of it"
    AFTER = "after it, before anybody knows"


class ProcessEnded(BaseException):
    """Raised inside the operation at which the process ends."""


class World:
    """Time, chance and the fate of one process."""

    def __init__(self, seed: int | str, *, delay_s: float = 0.002) -> None:
        self.chance = SeededRandomness(seed)
        self.delay_s = delay_s
        self.operations = 0
        self.ends_at: int | None = None
        self.cut = Cut.BEFORE
        self.ended = False
        self.end_event = asyncio.Event()
        self.runners: list[SimRunner] = []
        self.paused = False

    def reached_end(self) -> bool:
        """Count an operation; whether it is the one to end at."""
        self.operations += 1
        return self.operations == self.ends_at

    def end(self) -> None:
        """The process is gone: what is under way on the disks ends somehow, nobody hears of it."""
        if self.ended:
            return
        self.ended = True
        self.ends_at = None
        for runner in self.runners:
            runner.cut_off(self.chance)
        self.end_event.set()


class SimDisk:
    """The medium of one member."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.files: dict[str, bytearray] = {}
        self.removed: dict[str, bytearray] = {}
        self.identity = object()
        self.gone = False
        self.failing = False
        self.hanging = False
        self.full = False
        self.room = 0
        self.next_sync_fails = False
        self.unsynced: list[tuple[str, int, bytes]] = []
        self._honest: dict[str, bytearray] | None = None

    def image(self) -> dict[str, bytes]:
        """All of it, to be put back later."""
        return {name: bytes(data) for name, data in self.files.items()}

    def put_back(self, image: dict[str, bytes]) -> None:
        """Another or an older medium in its place."""
        self.files = {name: bytearray(data) for name, data in image.items()}
        self.removed = {}
        self.unsynced = []
        self.identity = object()
        self._honest = None

    def lie(self) -> None:
        """From now on nothing is durable, whatever is said."""
        self._honest = {name: bytearray(data) for name, data in self.files.items()}

    def power_cut(self, chance: SeededRandomness) -> None:
        """What was only believed to be durable is gone; what was removed may be back."""
        for name, data in self.removed.items():
            if name not in self.files and chance.below(2):
                self.files[name] = data
        self.removed = {}
        for name, at, before in reversed(self.unsynced):
            if name in self.files:
                self.files[name][at : at + len(before)] = before
        self.unsynced = []
        if self._honest is not None:
            self.files, self._honest = self._honest, None

    def flip(self, name: str, at: int) -> None:
        """One bit goes wrong."""
        self.files[name][at] ^= 1 << (at % 8)


class SimFolder:
    """The port over a disk, for one process."""

    def __init__(self, disk: SimDisk, world: World) -> None:
        self._disk = disk
        self._world = world
        self._identity = disk.identity
        self.torn: SeededRandomness | None = None
        self._fail_if_away()

    def names(self) -> list[str]:
        self._fail_if_away()
        return list(self._disk.files)

    def size(self, name: str) -> int:
        return len(self._file(name))

    def read(self, name: str, offset: int, length: int) -> bytes:
        return bytes(self._file(name)[offset : offset + length])

    def create(self, name: str, length: int) -> None:
        def do(_: SeededRandomness | None) -> None:
            if name in self._disk.files:
                raise self._error(f"{name} exists")
            if self._disk.full and length > self._disk.room:
                raise MemberFull(f"{self._disk.name}: no space left.", place=self._disk.name)
            self._disk.files[name] = bytearray(length)
            self._disk.removed.clear()

        self._change(do)

    def write(self, name: str, offset: int, data: bytes) -> None:
        file = self._file(name)

        def do(torn: SeededRandomness | None) -> None:
            if self._disk.full and offset + len(data) > len(file):
                raise MemberFull(f"{self._disk.name}: no space left.", place=self._disk.name)
            if offset + len(data) > len(file):
                file.extend(bytes(offset + len(data) - len(file)))
            if self._disk.next_sync_fails:
                # The page cache has it and says so to every reader; the medium does not.
                self._disk.next_sync_fails = False
                self._disk.unsynced.append((name, offset, bytes(file[offset : offset + len(data)])))
                file[offset : offset + len(data)] = data
                raise self._error("sync failed")
            for at in range(0, len(data), SECTOR):
                if torn is None or torn.below(2):
                    file[offset + at : offset + at + SECTOR] = data[at : at + SECTOR]

        self._change(do)

    def append(self, name: str, data: bytes) -> None:
        def do(torn: SeededRandomness | None) -> None:
            self._file(name).extend(data if torn is None else data[: torn.below(len(data))])

        self._change(do)

    def sync(self, name: str) -> None:
        self._file(name)

    def sync_names(self) -> None:
        self._fail_if_away()
        self._disk.removed.clear()

    def rename(self, old: str, new: str) -> None:
        self._file(old)

        def do(_: SeededRandomness | None) -> None:
            self._disk.files[new] = self._disk.files.pop(old)
            self._disk.removed.clear()

        self._change(do)

    def remove(self, name: str) -> None:
        def do(_: SeededRandomness | None) -> None:
            if name in self._disk.files:
                self._disk.removed[name] = self._disk.files.pop(name)

        self._change(do)

    def witness(self, name: str) -> int:
        if self._identity is not self._disk.identity:
            raise self._error("another disk is in its place")
        return len(self._file(name))

    def close(self) -> None:
        pass

    def _file(self, name: str) -> bytearray:
        self._fail_if_away()
        if name not in self._disk.files:
            raise self._error(f"{name} is not there")
        return self._disk.files[name]

    def _fail_if_away(self) -> None:
        if self._disk.gone or self._disk.failing or self._identity is not self._disk.identity:
            raise self._error("does not answer")

    def _error(self, what: str) -> MemberFailed:
        return MemberFailed(f"{self._disk.name}: {what}.", place=self._disk.name)

    def _change(self, do: Callable[[SeededRandomness | None], None]) -> None:
        self._fail_if_away()
        if self.torn is not None:
            do(self.torn)
            raise ProcessEnded
        if self._world.ended:
            do(None)
            return
        if self._world.reached_end():
            cut, chance = self._world.cut, self._world.chance
            if cut is not Cut.BEFORE:
                do(chance if cut is Cut.TORN else None)
            raise ProcessEnded
        do(None)


class SimRunner:
    """Does its calls one after the other, each a while after the one before."""

    def __init__(self, world: World, disk: SimDisk, folders: list[SimFolder]) -> None:
        self._world = world
        self._disk = disk
        self._folders = folders
        self._calls: deque[tuple[Callable[[], Any], asyncio.Future[Any]]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        world.runners.append(self)

    def submit(self, call: Callable[[], T]) -> asyncio.Future[T]:
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._calls.append((call, future))
        self._arm()
        return future

    @property
    def busy(self) -> bool:
        return bool(self._calls)

    def close(self, last: Callable[[], None] | None = None) -> asyncio.Future[None] | None:
        return None

    def cut_off(self, chance: SeededRandomness) -> None:
        """The process is gone in the middle of the first call."""
        if self._timer is not None:
            self._timer.cancel()
        fate = chance.below(3)
        if self._calls and fate and not self._disk.hanging:
            for folder in self._folders:
                folder.torn = chance if fate == 1 else None
            with contextlib.suppress(ProcessEnded, Exception):
                self._calls[0][0]()
        self._calls.clear()

    def _arm(self) -> None:
        if self._timer is None and self._calls and not self._world.ended:
            delay_s = self._world.delay_s * (0.2 + self._world.chance.fraction())
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._do)

    def _do(self) -> None:
        self._timer = None
        if self._world.ended:
            return
        if self._disk.hanging or self._world.paused:
            self._arm()
            return
        call, future = self._calls[0]
        try:
            result = call()
        except ProcessEnded:
            self._calls.popleft()
            self._world.end()
            return
        except Exception as error:
            self._calls.popleft()
            if not future.done():
                future.set_exception(error)
                future.exception()
        else:
            self._calls.popleft()
            if not future.done():
                future.set_result(result)
        self._arm()


class SimMember:
    """A member of the log on a simulated disk."""

    def __init__(self, disk: SimDisk, world: World) -> None:
        self._disk = disk
        self._world = world
        self._folders: list[SimFolder] = []

    @property
    def name(self) -> str:
        return self._disk.name

    @property
    def place(self) -> str:
        return f"simulated/{self._disk.name}"

    def open_folder(self) -> Folder:
        folder = SimFolder(self._disk, self._world)
        self._folders.append(folder)
        return folder

    def new_runner(self) -> Runner:
        return SimRunner(self._world, self._disk, self._folders)
