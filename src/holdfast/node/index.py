"""Where the index lies: its log on up to five of the stores, or on directories of its own.

What must hold: the log touches a store's directory only while the keeper has that very store attached
there, so that it neither writes to somebody else's disk nor makes an empty one look used; and members
are chosen to lie on as many devices as there are, because a majority on one device is worth one disk.
"""

import os
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from holdfast.base.clock import Clock
from holdfast.base.errors import Damaged, InvalidInput, Unavailable
from holdfast.base.ids import StoreId
from holdfast.base.randomness import Randomness
from holdfast.index import sqlite
from holdfast.index.sqlite import CopyAccess, CopyOptions, DirectoryCopy, IndexOptions, SqliteIndex
from holdfast.index.sqlite.copy import CopyFailed, CopyFiles, DirectoryCopyFiles
from holdfast.index.sqlite.folder import DirectoryFolder, Folder, MemberFailed
from holdfast.index.sqlite.runner import Runner, ThreadRunner
from holdfast.node.cluster import Cluster
from holdfast.node.config import INDEX_MEMBERS_MAX, Config
from holdfast.node.keeper import Held
from holdfast.stores.directory.device import device_name
from holdfast.stores.directory.place import IDENTITY
from holdfast.stores.identity import decode_identity
from holdfast.topology import Location, Topology

FOLDER_NAME = "index"
OWN_NAME = "data"
"""The member in the data folder."""


def directories_of(slots: Iterable[Held]) -> list[Held]:
    """Those where a log can lie: a bucket is no place for one."""
    return [held for held in slots if isinstance(held.place.path, Path)]


def _path_of(held: Held) -> Path:
    path = held.place.path
    assert isinstance(path, Path), "the index is never in a bucket"
    return path


def _check_there(held: Held) -> None:
    """Raises MemberFailed while the slot's own store is not there. Safe in any thread."""
    slot, path, opened = held.place.slot, _path_of(held), held.opened
    if opened is None:
        raise MemberFailed(f"The store {slot} is {held.attachment.value}.", place=str(path))
    try:
        found = decode_identity((path / IDENTITY).read_bytes())
    except (OSError, Damaged) as error:
        raise MemberFailed(f"The store {slot} is not there: {error}", place=str(path)) from None
    if found.store != opened.id:
        raise MemberFailed(f"Another store is in slot {slot}.", place=str(path))


class StoreMember:
    """A member in the directory of a store.

    Its folder is made once for each time the store is attached. A folder that is gone from an attached
    store is being removed, with or without the rest of it: making it again would only get in the way of
    whoever empties the directory.
    """

    def __init__(self, held: Held) -> None:
        self._held = held
        self._opened_on: object = None

    @property
    def name(self) -> str:
        return self._held.place.slot

    @property
    def place(self) -> str:
        return str(_path_of(self._held) / FOLDER_NAME)

    def open_folder(self) -> Folder:
        """Raises MemberFailed while the slot's own store is not there."""
        _check_there(self._held)
        folder = _path_of(self._held) / FOLDER_NAME
        if self._opened_on is self._held.opened and not folder.exists():
            raise MemberFailed(
                f"The index folder of store {self._held.place.slot} was removed.",
                hint="It is made again when the store is attached anew.",
                place=str(folder),
            )
        opened = DirectoryFolder(folder)
        self._opened_on = self._held.opened
        return opened

    def new_runner(self) -> Runner:
        return ThreadRunner(f"holdfast index {self.name}")

    def location(self) -> Location:
        """Where it is: where its store is."""
        place = self._held.place
        return Location(
            self._held.id or StoreId(place.slot), place.region, place.zone, place.host, self._held.device
        )

    def copy(self) -> CopyAccess:
        """A copy of the rows beside the log."""
        return StoreCopy(self._held)


class StoreCopy(DirectoryCopy):
    """A copy in the directory of a store."""

    def __init__(self, held: Held) -> None:
        super().__init__(held.place.slot, _path_of(held) / FOLDER_NAME)
        self._held = held

    @property
    def place(self) -> str:
        return str(_path_of(self._held) / FOLDER_NAME)

    def files(self) -> CopyFiles:
        return _StoreCopyFiles(self._held)


class _StoreCopyFiles(DirectoryCopyFiles):
    def __init__(self, held: Held) -> None:
        super().__init__(_path_of(held) / FOLDER_NAME)
        self._held = held

    def connect(self) -> sqlite3.Connection:
        self._check()
        return super().connect()

    def remove(self) -> None:
        self._check()
        super().remove()

    def _check(self) -> None:
        try:
            _check_there(self._held)
        except MemberFailed as error:
            raise CopyFailed(str(error)) from None


class DirectoryMember:
    """A member in a directory of its own."""

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self.path = path

    @property
    def place(self) -> str:
        return str(self.path)

    def open_folder(self) -> Folder:
        """Raises MemberFailed while the directory's parent is not there."""
        return DirectoryFolder(self.path)

    def new_runner(self) -> Runner:
        return ThreadRunner(f"holdfast index {self.name}")

    def copy(self) -> CopyAccess:
        """A copy of the rows beside the log."""
        return DirectoryCopy(self.name, self.path)


Member = StoreMember | DirectoryMember


class Slots(Protocol):
    """What is known of the stores: each slot as it is, and what is written down of all of them."""

    held: dict[str, Held]
    cluster: Cluster


class Members:
    """All places that may hold a member, and which of them the index was begun with."""

    def __init__(self, config: Config, keeper: Slots) -> None:
        self._held = keeper.held
        self.all: dict[str, Member] = {}
        for held in directories_of(keeper.held.values()):
            self.all[held.place.slot] = StoreMember(held)
        directories = config.index_dirs or (config.data / FOLDER_NAME,)
        names = [f"index{number}" for number in range(1, len(config.index_dirs) + 1)] or [OWN_NAME]
        for name, path in zip(names, directories, strict=True):
            self.all[name] = DirectoryMember(name, path)
        wanted = tuple(names) if config.index_dirs else _on_stores(directories_of(keeper.held.values()))
        self.first = keeper.cluster.index or wanted
        if config.index_dirs and set(self.first) != set(names):
            raise InvalidInput(
                f"The index of this installation lies on {', '.join(self.first)}, index_dirs names "
                f"{len(names)} other places:",
                hint="take index_dirs out of the configuration, or put the old ones back.",
            )

    def topology(self) -> Topology:
        """Where the members are, for what the index survives. A directory of its own is taken to be in the
        same region, zone and host as the first store: not to promise more than is known."""
        first = next(iter(directories_of(self._held.values()) or self._held.values())).place
        locations = []
        for name in self.first:
            member = self.all.get(name)
            if isinstance(member, StoreMember):
                locations.append(member.location())
            elif member is not None:
                device = device_below(member.path)
                locations.append(Location(StoreId(name), first.region, first.zone, first.host, device))
            else:
                locations.append(Location(StoreId(name), first.region, first.zone, first.host))
        return Topology(locations)


def _on_stores(slots: list[Held]) -> tuple[str, ...]:
    """Members on the stores, each on a device that no other has as long as there are such. An even number
    of stores is no better than one less; where there are few, the data folder makes it odd."""
    chosen: list[Held] = []
    while len(chosen) < min(INDEX_MEMBERS_MAX, len(slots)):
        left = [held for held in slots if held not in chosen]
        used = [_domain(held) for held in chosen]
        chosen.append(min(left, key=lambda held: used.count(_domain(held))))
    names = sorted(held.place.slot for held in chosen)
    return tuple(names if len(names) % 2 else [*names, OWN_NAME])


def _domain(held: Held) -> str:
    return held.device or held.place.slot


def device_below(path: Path) -> str:
    """The device of a directory, or of its nearest parent that exists."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return device_name(path.stat(), os.statvfs(path))


async def open_index(members: Members, clock: Clock, randomness: Randomness) -> SqliteIndex:
    """The index of this installation, or a new one when all members are there and empty.

    Raises Unavailable with what is missing, Fenced.
    """
    places = [members.all[name] for name in members.first if name in members.all]
    failures = len(members.first) // 2
    try:
        return await sqlite.open_index(
            members=places,
            copies=[place.copy() for place in places],
            clock=clock,
            randomness=randomness,
            options=IndexOptions(copies=CopyOptions(kept=failures + 1)),
        )
    except Unavailable as error:
        lost = "If they are lost for good, `holdfast recover` makes the index again from the stores."
        raise Unavailable(error.message, hint=f"{error.hint} {lost}", **error.facts) from error
