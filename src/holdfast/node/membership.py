"""Moves the index out of the way of stores that leave, and after stores that were replaced.

What must hold: the number of members stays odd, and never falls below three while it was above; a member
leaves only when another has taken its place, or the others are a majority without it; and what the data
folder remembers of the members always holds a majority of those that there are, so that the index is found
again after a crash at any moment.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from holdfast.base.errors import InvalidInput
from holdfast.index.sqlite import SqliteIndex
from holdfast.node.index import OWN_NAME, DirectoryMember, Members, StoreMember, device_below, directories_of
from holdfast.node.keeper import Keeper

MEMBERS_MIN = 3


def choose_heir(
    members: Sequence[str], free: Sequence[str], devices: Mapping[str, str], leaving: str
) -> str | None:
    """The free place that takes over from a member: on a device that no other member is on, if there is
    one; the first of those that are equal."""
    used = [devices.get(name, name) for name in members if name != leaving]
    return min(free, key=lambda name: used.count(devices.get(name, name)), default=None)


def choose_leavers(members: Sequence[str], out: Sequence[str], leaving: str) -> tuple[str, ...] | None:
    """The members that leave when one leaves for which there is no heir: with it one more, so that their
    number is odd: one that is out already, else the one in the data folder, else the last. None when too few
    would be left."""
    others = [name for name in members if name != leaving]
    if len(others) % 2:
        companion: tuple[str, ...] = ()
    else:
        last = OWN_NAME if OWN_NAME in others else others[-1] if others else ""
        companion = (next((name for name in others if name in out), last),)
    return (*companion, leaving) if len(others) - len(companion) >= MEMBERS_MIN else None


class Places(Protocol):
    """Where the index lies, as far as that has to do with stores."""

    def is_member(self, slot: str) -> bool:
        """Whether a part of the index that counts lies on a slot."""
        ...

    def arrived(self, slot: str) -> None:
        """A store came."""
        ...

    async def leave(self, slot: str) -> str | None:
        """Have a slot hold nothing of the index; says what was done. Raises InvalidInput, Unavailable."""
        ...

    def left(self, slot: str) -> None:
        """A slot is no more."""
        ...

    async def moved(self, slot: str) -> None:
        """A slot's store is in another directory now. Raises InvalidInput."""
        ...

    def check_can_do_without(self, slot: str) -> None:
        """Raises InvalidInput when the index cannot go on without a slot now."""
        ...


class Membership:
    """Changes where the running index lies."""

    def __init__(self, members: Members, index: SqliteIndex, keeper: Keeper) -> None:
        self._members = members
        self._index = index
        self._keeper = keeper

    def is_member(self, slot: str) -> bool:
        """Whether the index's log lies on a slot."""
        return slot in self._index.members

    def arrived(self, slot: str) -> None:
        """A store that came may hold a part of the index from now on."""
        for held in directories_of([self._keeper.held[slot]]):
            self._members.all.setdefault(slot, StoreMember(held))

    async def leave(self, slot: str) -> str | None:
        """Have a slot hold nothing of the index; says what was done. Raises InvalidInput with the reason
        when the index can't do without it, Unavailable."""
        index, said = self._index, None
        if slot in index.members:
            heir = choose_heir(index.members, self._free(), self._devices(), slot)
            if heir is not None:
                self._remember((*index.members, heir))
                await index.replace_member(slot, self._members.all[heir])
                await index.remove_copy(heir)
                index.add_copy(self._members.all[heir].copy())
                said = f"The index moved from {slot} to {heir}."
            else:
                leavers = choose_leavers(index.members, self._out(), slot)
                if leavers is None:
                    others = ", ".join(name for name in index.members if name != slot)
                    raise InvalidInput(
                        f"The index lies on {slot} and on {others}, and there is no other store for it.",
                        hint="Add a store first: `holdfast store add`.",
                    )
                for name in leavers:
                    await index.drop_member(name)
                said = (
                    f"The index lies on {', '.join(index.members)} now, no more on {' and '.join(leavers)}."
                )
        await index.remove_copy(slot)
        self._remember(index.members)
        return said

    def left(self, slot: str) -> None:
        """A slot is no more."""
        self._members.all.pop(slot, None)

    async def moved(self, slot: str) -> None:
        """A slot's store is in another directory now: what lay in the old one of the index is made anew in
        the new one. Raises InvalidInput when the others are no majority."""
        self._index.reopen_member(slot)
        if slot in self._members.all:
            await self._index.remove_copy(slot)
            if slot in self._index.members:
                self._index.add_copy(self._members.all[slot].copy())

    def check_can_do_without(self, slot: str) -> None:
        """Raises InvalidInput when the index has no majority without a slot now."""
        present = [name for name in self._index.members if name != slot and name not in self._out()]
        if slot in self._index.members and len(present) <= len(self._index.members) // 2:
            raise InvalidInput(
                f"The index has no majority without {slot} now: only {', '.join(present) or 'nobody'} of "
                f"{len(self._index.members)} members would be left.",
                hint="Bring the others back first.",
            )

    def _free(self) -> list[str]:
        """Places that could become a member."""
        keeper = self._keeper
        stores = [
            slot
            for slot, held in keeper.held.items()
            if held.opened is not None and keeper.takes_new(slot) and slot not in self._index.members
        ]
        own = [OWN_NAME] if OWN_NAME in self._members.all and OWN_NAME not in self._index.members else []
        return [slot for slot in stores if slot in self._members.all] + own

    def _devices(self) -> dict[str, str]:
        devices = {slot: held.device or slot for slot, held in self._keeper.held.items()}
        for name, member in self._members.all.items():
            if isinstance(member, DirectoryMember):
                devices[name] = device_below(member.path)
        return devices

    def _out(self) -> list[str]:
        return [member.name for member in self._index.status().members if member.state != "current"]

    def _remember(self, members: tuple[str, ...]) -> None:
        self._members.first = members
        self._keeper.remember_index(members, self._index.status().incarnation)
